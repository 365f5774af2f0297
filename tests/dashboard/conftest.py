"""A pretended run on disk, which tests can let grow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from actors.live_view import EnvView, EpisodePath
from actors.search.tree_picture import TreePicture
from launch.control.live_file import LiveFile
from tests.dashboard.chromium import Browser, Server, chromium

TREE = TreePicture(
    parent=np.array([-1, 0, 0, 1, 3, 1]),
    action=np.array([0, 1, 2, 1, 2, 0]),
    visits=np.array([21, 14, 6, 9, 3, 4]),
    value=np.array([1.5, 1.6, 1.1, 1.8, 1.9, 0.4]),
    prior=np.array([1.0, 0.3, 0.4, 0.5, 0.2, 0.2]),
    n_nodes=21,
)
ACTIONS = ("stay", "right", "jump")


class PretendRun:
    """Writes the files of a run as the controller would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "config.yaml").write_text("seed: 0\n")

    def append(self, name: str, record: object) -> None:
        with (self.path / name).open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def metrics(self, step: int, **metrics: object) -> None:
        head = {"timestamp": time.time(), "update": step // 2, "global_step": step}
        self.append("metrics.jsonl", {**head, **metrics})

    def heartbeat(self, **ages_s: float) -> None:
        processes = {
            name.replace("_", "-"): {
                "phase": "collect",
                "state": "suspect" if s > 60 else "healthy",
                "age_s": s,
                "is_stalled": s > 60,
            }
            for name, s in ages_s.items()
        }
        self.append("heartbeat.jsonl", {"timestamp": time.time(), "processes": processes})

    def live(self, prompt: str, prior: list[float] | None = None, n_envs: int = 3) -> None:
        """As the reporter does; the first of `n_envs` environments is looked at closely."""
        views = [env_view(env, prompt, prior) for env in range(n_envs)]
        text, actions = f"Choose. State: {prompt}", tuple(ACTIONS[a] for a in TREE.action)
        views[0] = replace(views[0], llm_text=text, tree=TREE, tree_actions=actions)
        LiveFile(self.path, time.monotonic).add(0, views)

    def old_live(self, prompt: str) -> None:
        """As runs wrote it when they showed one environment."""
        self.live(prompt)
        entry = json.loads((self.path / "live.json").read_text())["environments"][1]
        for name in ("actor", "env", "level", "llm_text", "n_actions", "chosen", "length"):
            del entry[name]
        del entry["total_reward"], entry["path"], entry["tree"]
        (self.path / "live.json").write_text(json.dumps(entry))

    def settings(self, **values: object) -> None:
        """As a run tells of them."""
        known = {
            "temperature": ("number", False, 0.01, 10.0, "the run's schedule", None, 1.0),
            "simulations": ("number", True, 1, 20, "search.n_simulations", None, 20),
            "learning_rate_scale": ("number", False, 0.01, 10.0, "", 1.0, 1.0),
            "paused": ("switch", False, 0, 1, "", False, False),
        }
        rows = []
        for name, (kind, is_whole, low, high, own, value, now) in known.items():
            row = {"name": name, "kind": kind, "is_whole": is_whole, "low": low, "high": high}
            value, now = (values[name], values[name]) if name in values else (value, now)
            rows.append({**row, "own": own, "value": value, "now": now, "meaning": "means that"})
        (self.path / "live-settings.json").write_text(json.dumps({"settings": rows}))

    def timings(self, wall_s: float, at: float | None = None, **processes: dict) -> None:
        """As the driver writes it; of each process role, stages and what it is at."""
        rows = {n.replace("_", "-"): {"wall_s": wall_s, **p} for n, p in processes.items()}
        content = {"timestamp": at or time.time(), "wall_s": wall_s, "processes": rows}
        (self.path / "timings.json").write_text(json.dumps(content))

    def checkpoint(self, env_steps: int, *marks: str, **event: object) -> None:
        folder = self.path / "checkpoints" / f"step-{env_steps:010d}-update-{env_steps // 2:08d}"
        folder.mkdir(parents=True)
        for mark in marks:
            (folder.parent / mark).write_text(f"{folder.name}\n")
        if event:
            record = {"timestamp": time.time(), "event": "checkpoint", "path": str(folder), **event}
            self.append("events.jsonl", record)

    def finish(self) -> None:
        """Runs to its end."""
        (self.path / "summary.json").write_text('{"finished": true}')


def env_view(env: int, prompt: str, prior: list[float] | None) -> EnvView:
    """What an env actor says of an environment that is not looked at closely."""
    _, png = cv2.imencode(".png", np.full((24, 32, 3), 120, np.uint8))
    return EnvView(
        env_id=env,
        level="1-1",
        frame_png=png.tobytes(),
        prompt=prompt,
        llm_text="",
        n_actions=5,
        indices=np.array([0, 2, 4]),
        actions=ACTIONS,
        chosen=2,
        search_policy=np.array([0.1, 0.7, 0.2], np.float32),
        model_policy=np.array([0.3, 0.3, 0.4], np.float32),
        llm_prior=None if prior is None else np.array(prior, np.float32),
        root_value=1.5,
        length=3 + env,
        total_reward=2.25,
        path=EpisodePath(
            every=2,
            value=np.array([1.0, 1.2, 1.4, 1.5], np.float32),
            total_reward=np.array([0.0, 0.0, 1.0, 2.25], np.float32),
        ),
        tree=None,
        tree_actions=(),
    )


@pytest.fixture
def empty_run(tmp_path: Path) -> PretendRun:
    return PretendRun(tmp_path / "empty-run")


@pytest.fixture
def run(tmp_path: Path) -> PretendRun:
    run = PretendRun(tmp_path / "demo-run")
    machine = {"rss_mb/learner": 512.0, "wait_percent/learner/sample": 61.0}
    for step in range(0, 100, 10):
        loss = None if step == 50 else 1.0
        run.metrics(step, avg_return=step / 10, loss_total=loss, **machine)
    run.heartbeat(learner=1.0, env_actor_0=130.0)
    failure = {"event": "child_failed", "child": "learner", "cause": "it <b>broke</b>"}
    run.append("events.jsonl", {"timestamp": time.time() - 7200.0, **failure})
    run.settings()
    run.checkpoint(50)
    run.checkpoint(80, "LATEST", "BEST", reason="periodic", seconds=1.25, stall_s=0.5)
    run.live("Goomba 3 tiles right <b>bold</b>", prior=[0.2, 0.2, 0.6])
    return run


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path) as one:
        yield one


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(run: Path, *options: str, port: int = 0) -> Server:
        servers.append(Server(run, *options, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
