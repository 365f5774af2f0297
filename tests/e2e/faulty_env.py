"""CartPole with words, which breaks down as a file tells it to; `--env faulty_env:Faulty-v0`.

Only within env actors. The folder WARPZONE_FAULTS holds plan.json, a list of (kind, after how many
steps of a process); whoever is first to get so far takes the next fault. Every process leaves a
file there with one byte per step that it took.
"""

import ctypes
import json
import os
import signal
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

FAULTS = {
    "raise": lambda: _raise(RuntimeError("the emulator broke (by a test)")),
    "memory": lambda: _raise(MemoryError("no memory left (by a test)")),
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),  # what the kernel's OOM killer sends
    "hang": lambda: time.sleep(10_000),
    "hang holding the GIL": lambda: ctypes.PyDLL(None).sleep(10_000),
}


def _raise(error: Exception) -> None:
    raise error


class Plan:
    """Of one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plan = json.loads((folder / "plan.json").read_text())
        self._log = (folder / f"steps-{os.getpid()}").open("ab", buffering=0)
        self._n_steps = 0
        self._next = 0

    def step(self) -> None:
        self._n_steps += 1
        while self._next < len(self._plan):
            kind, after = self._plan[self._next]
            if self._n_steps < after:
                break
            self._next += 1
            if self._claim(self._next - 1, kind):
                self._next = len(self._plan)  # who goes on until it is replaced takes no other
                FAULTS[kind]()
        self._log.write(b".")

    def _claim(self, index: int, kind: str) -> bool:
        try:
            (self._folder / f"fault-{index}").mkdir()
        except FileExistsError:
            return False
        record = {"kind": kind, "pid": os.getpid(), "time": time.time()}
        unfinished = self._folder / f"fault-{index}" / "what.tmp"
        unfinished.write_text(json.dumps(record))
        unfinished.rename(unfinished.with_suffix(".json"))
        return True


class FaultyCartPole(CartPoleEnv):
    """Its plan is its process's."""

    reward_version = 1
    rom_hash = ""
    plan: Plan | None = None

    def step(self, action):
        if FaultyCartPole.plan is None and _is_env_actor():
            FaultyCartPole.plan = Plan(Path(os.environ["WARPZONE_FAULTS"]))
        if FaultyCartPole.plan is not None:
            FaultyCartPole.plan.step()
        return super().step(action)

    def level(self) -> str:
        return ""

    def prompt(self) -> str:
        return f"A pole leans by {self.state[2]:+.2f}, the cart moves at {self.state[1]:+.1f}."

    def option_texts(self) -> tuple[str, ...]:
        return ("push left", "push right")


def _is_env_actor() -> bool:
    return b"ray::EnvActor" in Path("/proc/self/cmdline").read_bytes()


gymnasium.register("Faulty-v0", entry_point=FaultyCartPole, max_episode_steps=500)
