"""What the children of a simulated run answer, and how long they take: no games, no models.

Answers have the classes, fields and sizes of real ones, since the controller's work depends on
them; times and bytes default to what docs/benchmarks.md has measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actors.collect_report import CollectReport, EpisodeRecord
from actors.evaluation import EvaluationReport
from actors.live_view import EnvView, EpisodePath, ViewWish
from cache.pool import PoolStats
from launch.monitoring.monitor import Heartbeat, role_of
from learner.learner import TrainReport
from replay_service import AddReport

N_ACTIONS = 7
PICTURE = bytes(4_000)  # a thumbnail of Mario's
STAT_NAMES = ("replay_fill_rate", "replay_positions", "replay_mass", "replay_last_unique_ratio")
STAT_NAMES += ("replay_avg_unique_ratio", *(f"replay_figure_{i}_total" for i in range(24)))
LOSSES = ("loss_total", "loss_policy", "loss_value", "loss_reward", "loss_latent", "entropy")
LOSSES += ("grad_norm", "learning_rate", "value_mean", "value_error", "reanalysed_share")


@dataclass(frozen=True, slots=True)
class Costs:
    """Of the children's work, in seconds and bytes."""

    start_s: float = 15.0  # a process imports, builds its model and reads compiled kernels
    env_step_s: float = 0.038  # an env actor's own work at one env step
    spread: float = 0.2  # standard deviation of the logarithm of a collect call's time
    position_bytes: int = 4_231
    add_bytes_per_s: float = 632e6  # of one shard
    update_s: float = 0.02
    updates_per_publish: int = 50
    episode_steps: int = 300
    evaluation_s: float = 60.0
    save_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Payload:
    """Stands for the segments of one collect call."""

    n_positions: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a child does with one call."""

    seconds: float
    answer: object
    payload: object = None


@dataclass(slots=True)
class SimulatedChildren:
    """Answers for all processes of a run. What they hold together is here, for the checks."""

    rng: np.random.Generator
    costs: Costs = field(default_factory=Costs)
    env_steps: int = 0  # of collect calls that were begun
    n_updates: int = 0
    version: int = 0
    held: dict[str, int] = field(default_factory=dict)  # positions by shard

    def work(self, name: str, pid: int, method: str, args: Sequence[object]) -> Work:
        """What the process `pid` of the child `name` does with a call of `method`."""
        if method == "ping":
            return Work(0.001, pid)
        return getattr(self, f"_{method}")(name, *args)

    def _collect(self, name: str, n_steps: int, env_steps: int, *rest: object) -> Work:
        costs = self.costs
        self.env_steps += n_steps
        seconds = n_steps * costs.env_step_s * float(np.exp(self.rng.normal(0.0, costs.spread)))
        wish = rest[0]
        report = CollectReport(
            env_steps=n_steps,
            payload_bytes=n_steps * costs.position_bytes,
            simulations=n_steps * 16,
            weight_version=self.version,
            episodes=self._episodes(name, n_steps),
            seconds={s: seconds / 4 for s in ("pull", "search", "env", "prior_ask")}
            | {"total": seconds},
            search={f"figure_{i}": 1.0 for i in range(2)}
            | {f"seconds_{part}": seconds / 8 for part in ("model", "tree", "total")}
            | {"n_failed": 0.0, "n_rebuilt": 0.0},
            cache={pool: PoolStats(9, 1, 0, 64, 128, 4096, 8192) for pool in ("init", "recurrent")},
            views=_views(wish) if isinstance(wish, ViewWish) else [],
        )
        return Work(seconds, report, Payload(n_steps))

    def _episodes(self, name: str, n_steps: int) -> list[EpisodeRecord]:
        n_episodes = self.rng.poisson(n_steps / self.costs.episode_steps)
        actor = int(name.rpartition("-")[2])
        length = self.costs.episode_steps
        record = EpisodeRecord(actor, 0, "1-1", 12.5, length, "death", 800)
        return [record] * int(n_episodes)

    def _add(self, name: str, payload: Payload) -> Work:
        n_bytes = payload.n_positions * self.costs.position_bytes
        self.held[name] = self.held.get(name, 0) + payload.n_positions
        held_bytes = self.held[name] * self.costs.position_bytes
        report = AddReport(payload.n_positions, 0, 0, 0, (), n_bytes, held_bytes)
        return Work(0.001 + n_bytes / self.costs.add_bytes_per_s, report)

    def _train(self, name: str, n_updates: int, *rest: object) -> Work:
        self.n_updates += n_updates
        self.version = self.n_updates // self.costs.updates_per_publish
        stages = ("sample_wait", "transfer", "compute", "publish")
        seconds = n_updates * self.costs.update_s
        report = TrainReport(
            n_updates,
            {loss: 0.5 for loss in LOSSES},
            {stage: seconds / 4 for stage in stages},
            last_update=self.n_updates,
            version=self.n_updates,
        )
        return Work(seconds, report)

    def _evaluate(self, name: str, n_episodes: int, films: bool) -> Work:
        returns, lengths = (12.5,) * n_episodes, (self.costs.episode_steps,) * n_episodes
        reasons, max_x = ("death",) * n_episodes, (800,) * n_episodes
        seconds = self.costs.evaluation_s
        report = EvaluationReport(self.version, returns, lengths, reasons, max_x, seconds, None)
        return Work(seconds, report)

    def _sample(self, name: str, beats: list[Heartbeat]) -> Work:
        roles = {role_of(beat.process) for beat in beats}
        figures = [
            f"{f}_{of}" for f in ("cpu_percent", "rss_mb", "uss_mb") for of in ("mean", "max")
        ]
        sample = {f"{figure}/{role}": 50.0 for role in roles for figure in figures}
        return Work(0.05, {**sample, "cpu_percent_machine": 50.0, "memory_used_percent": 50.0})

    def _stats(self, name: str) -> Work:
        return Work(0.005, dict.fromkeys(STAT_NAMES, 1.0))

    def _save(self, name: str, folder: Path, *rest: object) -> Work:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text("{}\n")
        return Work(self.costs.save_s, None)

    def _load(self, name: str, folder: Path) -> Work:
        return Work(self.costs.save_s, None)

    def _publish(self, name: str, *rest: object) -> Work:
        return Work(0.1, self.version)

    def _placement(self, name: str) -> Work:
        return Work(0.001, "cpu")

    def _is_finite(self, name: str) -> Work:
        return Work(0.01, True)

    def _watch(self, name: str, *rest: object) -> Work:
        return Work(0.001, None)


def _views(wish: ViewWish) -> list[EnvView]:
    policy = np.full(N_ACTIONS, 1.0 / N_ACTIONS, np.float32)
    texts = tuple(f"action {action}" for action in range(N_ACTIONS))
    path = EpisodePath(1, np.zeros(200, np.float32), np.zeros(200, np.float32))
    return [
        EnvView(
            env_id=env_id,
            level="1-1",
            frame_png=PICTURE,
            prompt="",
            llm_text="",
            n_actions=N_ACTIONS,
            indices=np.arange(N_ACTIONS),
            actions=texts,
            chosen=0,
            search_policy=policy,
            model_policy=policy,
            llm_prior=None,
            root_value=0.0,
            length=200,
            total_reward=0.0,
            path=path,
            tree=None,
            tree_actions=(),
        )
        for env_id in range(wish.n_envs)
    ]
