"""Counters of a run and the metrics computed from them; owned by the controller."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from actors.collect_report import CollectReport
from actors.evaluation import EvaluationReport
from actors.reanalysis import ReanalysisReport
from cache.pool import PoolStats
from launch.control.adaptive import AdaptiveState
from launch.control.episode_figures import EpisodeFigures
from launch.control.refresh_figures import RefreshFigures
from learner.learner import TrainReport
from learner.weights import NO_VERSION

CACHE_EVENTS = ("hits", "misses", "evictions")


@dataclass(slots=True)
class Window:
    """Sums since the last metric line."""

    started: float
    env_steps: int = 0
    updates: int = 0
    simulations: int = 0
    actor_seconds: Counter[str] = field(default_factory=Counter)
    learner_seconds: Counter[str] = field(default_factory=Counter)
    search: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)  # "<pool>_<event>"
    depth_max: int = 0
    n_collects: int = 0
    n_trains: int = 0
    lags: list[int] = field(default_factory=list)  # versions, one per collect call


class Progress:
    """Whole-run counters (saved in checkpoints) and a window for rates (not saved)."""

    def __init__(self, n_actors: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._n_actors = n_actors
        self.env_steps = 0
        self.episodes = 0
        self.updates = 0
        self.evaluations = 0
        self.restarts = 0
        self.rollbacks = 0
        self.updates_restored = 0  # of `updates`, those from before this process
        self.end_reasons: Counter[str] = Counter()
        self.best_return = -np.inf
        self.is_new_best = False  # since the last checkpoint
        self._episodes = EpisodeFigures()
        self._losses: dict[str, float] = {}
        self._prior: dict[str, dict[str, float]] = {}  # by env actor
        self._cache: dict[str, dict[str, PoolStats]] = {}  # by process, then pool
        self._evaluation: dict[str, float] = {}
        self._refreshes = RefreshFigures()
        self.adaptive = AdaptiveState()
        self.weight_version = NO_VERSION  # newest that acted
        self._learner_version = NO_VERSION
        self._clock = clock
        self._started = clock()
        self.window = Window(self._started)

    def collected(self, actor: str, report: CollectReport) -> None:
        self.env_steps += report.env_steps
        self.weight_version = max(self.weight_version, report.weight_version)
        self.window.env_steps += report.env_steps
        self.window.simulations += report.simulations
        self.window.actor_seconds.update(report.seconds)
        self.window.search.update(report.search)
        self.window.depth_max = max(self.window.depth_max, report.depth_max)
        self.window.n_collects += 1
        if NO_VERSION not in (report.weight_version, self._learner_version):
            self.window.lags.append(max(0, self._learner_version - report.weight_version))
        if report.cache:
            self.cached(actor, report.cache)
        if report.prior:
            self._prior[actor] = report.prior
        for episode in report.episodes:
            self.episodes += 1
            self.end_reasons[episode.end_reason] += 1
            self._episodes.add(episode)

    def cached(self, process: str, pools: dict[str, PoolStats]) -> None:
        """What a process that searches says of its KV pages, since it last said so."""
        self._cache[process] = pools
        for pool, stats in pools.items():
            for event in CACHE_EVENTS:
                self.window.cache[f"{pool}_{event}"] += getattr(stats, event)

    def trained(self, report: TrainReport) -> None:
        self.updates += report.n_updates
        self.window.updates += report.n_updates
        self.window.learner_seconds.update(report.seconds)
        self.window.n_trains += 1
        self._learner_version = report.version
        self._losses = dict(report.metrics)

    def refreshed(self, report: ReanalysisReport) -> None:
        self._refreshes.add(report)

    def evaluated(self, report: EvaluationReport) -> None:
        self.evaluations += 1
        if report.mean_return > self.best_return:
            self.best_return, self.is_new_best = report.mean_return, True
        self._evaluation = {
            "eval_return_mean": report.mean_return,
            "eval_return_min": float(min(report.returns)),
            "eval_return_max": float(max(report.returns)),
            "eval_length_mean": float(np.mean(report.lengths)),
            "eval_weight_version": float(report.weight_version),
            "eval_sec": report.seconds,
        }
        if report.max_x:
            self._evaluation["eval_max_x_mean"] = float(np.mean(report.max_x))
            self._evaluation["eval_flag_rate"] = report.end_reasons.count("flag") / len(
                report.end_reasons
            )

        for mode, played in report.modes.items():
            self._evaluation[f"eval_{mode}_return_mean"] = float(np.mean(played.returns))
            if played.max_x:
                self._evaluation[f"eval_{mode}_max_x_mean"] = float(np.mean(played.max_x))
            if mode == "llm":
                self._evaluation["eval_llm_unadvised_share"] = played.unadvised_share

    def state(self) -> dict[str, object]:
        return {
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "updates": self.updates,
            "evaluations": self.evaluations,
            "end_reasons": dict(self.end_reasons),
            "best_return": None if np.isinf(self.best_return) else self.best_return,
            "adaptive": self.adaptive.to_json(),
        }

    def restore(self, state: dict[str, object]) -> None:
        self.env_steps = int(state["env_steps"])
        self.episodes = int(state["episodes"])
        self.updates = self.updates_restored = int(state["updates"])
        self.evaluations = int(state["evaluations"])
        self.end_reasons = Counter(state["end_reasons"])
        best = state["best_return"]
        self.best_return = -np.inf if best is None else float(best)
        if "adaptive" in state:  # older checkpoints have none
            self.adaptive = AdaptiveState.from_json(state["adaptive"])

    def close_window(self) -> dict[str, float]:
        """The metrics of the window that ends now, and begins the next one."""
        now = self._clock()
        elapsed = max(now - self.window.started, 1e-9)
        metrics: dict[str, float] = {
            "elapsed_min": (now - self._started) / 60.0,
            "episodes": self.episodes,
            "weight_version": self.weight_version,
            "restarts": self.restarts,
            "rollbacks": self.rollbacks,
            "env_steps_per_sec": self.window.env_steps / elapsed,
            "updates_per_sec": self.window.updates / elapsed,
            "search_simulations_per_sec": self.window.simulations / elapsed,
        }
        metrics.update(self._losses)
        metrics.update(self._evaluation)
        metrics.update(self._episodes.metrics(self.end_reasons))
        metrics.update(self._call_metrics())
        metrics.update(self._search_metrics())
        metrics.update(self._cache_metrics())
        metrics.update(self._prior_metrics())
        metrics.update(self._wait_metrics(elapsed))
        metrics.update(self._refreshes.close_window(elapsed))
        if self.adaptive != AdaptiveState():  # it follows the returns
            metrics["adaptive_learning_rate_scale"] = self.adaptive.learning_rate
            metrics["adaptive_exploration_scale"] = self.adaptive.exploration
        self.window = Window(now)
        return metrics

    def _search_metrics(self) -> dict[str, float]:
        search = self.window.search
        if not search:
            return {}
        metrics = {
            "search_depth_mean": search["depth"] / max(search["n_roots"], 1),
            "search_depth_max": float(self.window.depth_max),
            "search_model_share": search["seconds_model"] / max(search["seconds_total"], 1e-9),
            "search_tree_share": search["seconds_tree"] / max(search["seconds_total"], 1e-9),
            "search_failed_roots": search["n_failed"],
            "search_rebuilt_roots": search["n_rebuilt"],
        }
        if search["n_priors"]:
            metrics["prior_search_kl"] = search["prior_kl"] / search["n_priors"]
        return metrics

    def _call_metrics(self) -> dict[str, float]:
        """How long calls took, and how old the weights were that acted."""
        window, metrics = self.window, {}
        if window.n_collects:
            metrics["rollout_time_s"] = window.actor_seconds["total"] / window.n_collects
        if window.n_trains:
            learner = window.learner_seconds
            metrics["learn_time_s"] = learner.total() / window.n_trains
            busy = learner["transfer"] + learner["compute"] + learner["publish"]
            metrics["update_time_ms"] = 1e3 * busy / max(window.updates, 1)
        if window.lags:
            metrics["acting_lag_mean"] = sum(window.lags) / len(window.lags)
            metrics["acting_lag_max"] = float(max(window.lags))
        return metrics

    def _cache_metrics(self) -> dict[str, float]:
        """Events of the window and pages in use now, over all env actors."""
        window, metrics = self.window.cache, {}
        for pool in {name for pools in self._cache.values() for name in pools}:
            prefix = f"search_cache_{pool}"
            for event in CACHE_EVENTS:
                metrics[f"{prefix}_{event}"] = float(window[f"{pool}_{event}"])
            n_lookups = window[f"{pool}_hits"] + window[f"{pool}_misses"]
            if n_lookups:
                metrics[f"{prefix}_hit_rate"] = window[f"{pool}_hits"] / n_lookups
            for use in ("pages_used", "bytes_used", "bytes_total"):
                now = [getattr(pools[pool], use) for pools in self._cache.values()]
                metrics[f"{prefix}_{use}"] = float(sum(now))
        return metrics

    def _prior_metrics(self) -> dict[str, float]:
        """Sums counters over actors; averages and versions over those that report them."""
        summed: dict[str, float] = {}
        for name in {name for stats in self._prior.values() for name in stats}:
            values = [stats[name] for stats in self._prior.values() if name in stats]
            total = name.endswith("_total")
            summed[name] = float(np.sum(values) if total else np.mean(values))
        return summed

    def _wait_metrics(self, elapsed: float) -> dict[str, float]:
        """Percent of wall time: who works at what, who waits for whom.

        The limiter's part is what is left, and so holds whatever keeps a process from being asked.
        """
        per_actor = 100.0 / (elapsed * self._n_actors)
        actor, learner = self.window.actor_seconds, self.window.learner_seconds
        metrics = {
            f"time_percent/env_actor/{stage}": actor[stage] * per_actor
            for stage in ("env", "search", "prior_ask", "pull")
        }
        metrics["wait_percent/env_actor/prior"] = actor["prior_wait"] * per_actor
        if "search_wait" in actor:  # a service searches
            metrics["wait_percent/env_actor/search"] = actor["search_wait"] * per_actor
        metrics["wait_percent/env_actor/limiter"] = max(0.0, 100.0 - actor["total"] * per_actor)
        for stage in ("transfer", "compute", "publish"):
            metrics[f"time_percent/learner/{stage}"] = 100.0 * learner[stage] / elapsed
        metrics["wait_percent/learner/sample"] = 100.0 * learner["sample_wait"] / elapsed
        used = 100.0 * sum(learner.values()) / elapsed
        metrics["wait_percent/learner/limiter"] = max(0.0, 100.0 - used)
        return metrics
