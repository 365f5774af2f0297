"""Searches stored segments again with newer weights and sends their new targets back.

Plain Python, one thread. Many steps of several segments are searched as one batch: each is a root
of its own, whose window is rebuilt from the segment's raw tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from actors.player import PlayerConfig
from actors.prior.client import PriorClient, PriorTransport
from actors.search import Planner, RootPrior
from actors.search.history import NO_ACTION, HistoryTail
from actors.search.service import make_search_model
from learner.weights import NO_VERSION, WeightSource, load_weights
from learner.world_model import WorldModel
from replay_service import GameSpec, Handles, ReanalysisRequest, ReanalysisSource, TargetPatch
from replay_service.stage_times import add_seconds


@dataclass(frozen=True, slots=True)
class ReanalysisConfig:
    share: float = 0.0  # of sampled positions, how many have targets searched again; 0 = off
    segments_per_call: int = 4  # segments searched per call; more means fewer, longer calls
    batch_steps: int = 64  # steps searched as one batch; more is faster a step and takes memory

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ValueError(
                f"reanalysis.share must lie in [0, 1), got {self.share}; 0 is off, and 1 can't be "
                "reached, since what was just played is sampled too"
            )
        for name in ("segments_per_call", "batch_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"reanalysis.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(slots=True)
class ReanalysisReport:
    """What one call came to; small enough to travel inline."""

    weight_version: int = NO_VERSION
    n_segments: int = 0  # searched
    n_as_new: int = 0  # handed out and left alone: their targets are as new as the weights
    n_trainable: int = 0  # positions of them that may start a sample
    n_positions: int = 0  # searched: these, and context that windows read
    n_applied: int = 0  # of them, replay took over
    n_failed: int = 0  # of them, met a number that is not finite; their old targets stay
    n_with_prior: int = 0  # of them, whose root used the language model
    versions_gained: int = 0  # summed over segments: the weights' version less the old targets'
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by stage

    def add_seconds(self, stage: str, since: float) -> float:
        return add_seconds(self.seconds, stage, since)


@dataclass(frozen=True, slots=True)
class Roots:
    """N steps to be searched, each a root of its own; A actions, K earlier steps known of each.

    obs:         [N, *stacked_shape]
    last_action: [N] int64, what led to each step; NO_ACTION at a segment's first one, whatever was
                 played before it, as at the start of a training window
    tail:        the K steps before each
    legal:       [N, A] bool
    prompt:      N texts, "" where the language model was not asked
    options:     N rows of A texts
    """

    obs: NDArray[np.generic]
    last_action: NDArray[np.int64]
    tail: HistoryTail
    legal: NDArray[np.bool_]
    prompt: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.last_action)

    def rows(self, chosen: slice) -> Roots:
        tail = self.tail
        return Roots(
            self.obs[chosen],
            self.last_action[chosen],
            HistoryTail(tail.steps[chosen], tail.obs[chosen], tail.action[chosen]),
            self.legal[chosen],
            self.prompt[chosen],
            self.options[chosen],
        )


def segment_roots(
    request: ReanalysisRequest, spec: GameSpec, *, n_steps: int, n_kept: int
) -> Roots:
    """The first `n_steps` steps of a segment, with the `n_kept` steps before each."""
    frames = np.arange(n_steps)[:, None] + np.arange(spec.frame_stack)
    obs = request.obs[frames].reshape(n_steps, *spec.stacked_shape)
    last_action = np.full(n_steps, NO_ACTION, np.int64)
    last_action[1:] = request.action[: n_steps - 1]
    before = np.arange(n_steps) - 1
    past = np.maximum(before[:, None] + np.arange(1 - n_kept, 1), 0)
    shape = (n_steps, spec.n_actions)
    return Roots(
        obs=obs,
        last_action=last_action,
        tail=HistoryTail(before, obs[past], last_action[past]),
        legal=np.ones(shape, np.bool_) if request.legal is None else request.legal[:n_steps],
        prompt=(request.prompt or ("",) * n_steps)[:n_steps],
        options=tuple(
            texts or ("",) * spec.n_actions
            for texts in (request.options or ((),) * n_steps)[:n_steps]
        ),
    )


def join_roots(parts: Sequence[Roots]) -> Roots:
    """The rows of all `parts`, one after another."""

    def joined(columns: Iterable[NDArray[np.generic]]) -> NDArray[np.generic]:
        return np.concatenate(list(columns))

    return Roots(
        obs=joined(part.obs for part in parts),
        last_action=joined(part.last_action for part in parts),
        tail=HistoryTail(
            joined(part.tail.steps for part in parts),
            joined(part.tail.obs for part in parts),
            joined(part.tail.action for part in parts),
        ),
        legal=joined(part.legal for part in parts),
        prompt=tuple(text for part in parts for text in part.prompt),
        options=tuple(texts for part in parts for texts in part.options),
    )


@dataclass(frozen=True, slots=True)
class NewTargets:
    """What searches of N steps found: policy [N, A], root_value [N], is_found [N] bool."""

    policy: NDArray[np.float32]
    root_value: NDArray[np.float32]
    is_found: NDArray[np.bool_]


class Reanalyser:
    """Owns a copy of the weights and nothing that can't be lost."""

    def __init__(
        self,
        *,
        model: WorldModel,
        planner: Planner,
        prior: PriorClient | None,
        weight_source: WeightSource,
        source: ReanalysisSource,
        unroll_steps: int,
    ) -> None:
        """unroll_steps: H, steps whose policies and values a training window reads"""
        self._model = model
        self._planner = planner
        self._prior = prior
        self._weight_source = weight_source
        self._source = source
        self._unroll_steps = unroll_steps

    def refresh(self, n_segments: int, env_steps: int) -> ReanalysisReport:
        """Pull new weights, then search up to `n_segments` segments again that have older targets.

        `env_steps` is the run's count and drives the decay of the language model's share. Where
        nothing that is handed out has older targets, nothing is searched.
        """
        report = ReanalysisReport()
        mark = time.perf_counter()
        self._pull_weights()
        report.weight_version = self._planner.weight_version
        mark = report.add_seconds("pull", mark)
        requests = self._older_segments(n_segments, report)
        mark = report.add_seconds("fetch", mark)
        if not requests:
            return report
        patches = self._search(requests, env_steps, report)
        mark = report.add_seconds("search", mark)
        report.n_applied = self._source.patch(patches)
        report.add_seconds("patch", mark)
        return report

    def _pull_weights(self) -> None:
        weights = self._weight_source.pull_if_newer(self._planner.weight_version)
        if weights is not None:
            load_weights(self._model, weights)
            self._planner.weights_changed(weights.version)

    def _older_segments(self, n_segments: int, report: ReanalysisReport) -> list[ReanalysisRequest]:
        """Of the first shard in turn that has any; [] where no shard has."""
        version = self._planner.weight_version
        if version == NO_VERSION:
            return []
        for _ in range(self._source.n_shards):
            handed_out = self._source.next(n_segments)
            older = [request for request in handed_out if request.target_version < version]
            report.n_as_new += len(handed_out) - len(older)
            if older:
                return older
        return []

    def _search(
        self, requests: Sequence[ReanalysisRequest], env_steps: int, report: ReanalysisReport
    ) -> list[TargetPatch]:
        spec, n_kept = self._model.spec, self._model.config.receptive_steps - 1
        parts = [
            segment_roots(request, spec, n_steps=self._n_read(request), n_kept=n_kept)
            for request in requests
        ]
        found = self._search_roots(join_roots(parts), env_steps, report)
        version = report.weight_version
        report.n_segments = len(requests)
        report.n_trainable = sum(request.n_trainable for request in requests)
        report.versions_gained = sum(version - request.target_version for request in requests)
        patches, first = [], 0
        for request, part in zip(requests, parts, strict=True):
            steps = np.flatnonzero(found.is_found[first : first + len(part)])
            held, rows = request.handles.on_host(), first + steps
            handles = Handles(held.shard, held.slot[steps], held.generation[steps])
            patches.append(
                TargetPatch(handles, found.policy[rows], found.root_value[rows], version)
            )
            first += len(part)
        return patches

    def _n_read(self, request: ReanalysisRequest) -> int:
        """Steps whose targets some window reads: from a trainable one, H - 1 further."""
        return min(len(request), request.n_trainable + self._unroll_steps - 1)

    def _search_roots(self, roots: Roots, env_steps: int, report: ReanalysisReport) -> NewTargets:
        """Search all roots, as many at once as the planner has places."""
        n_roots, planner = len(roots), self._planner
        found = NewTargets(
            np.empty((n_roots, self._model.spec.n_actions), np.float32),
            np.empty(n_roots, np.float32),
            np.empty(n_roots, np.bool_),
        )
        for first in range(0, n_roots, planner.n_envs):
            rows = slice(first, first + planner.n_envs)
            batch = roots.rows(rows)
            places = np.arange(len(batch))
            mix = self._ask_prior(batch)
            planner.restore(places, batch.tail)
            output = planner.search(
                places, batch.obs, batch.last_action, batch.legal, mix=mix, env_steps=env_steps
            )
            found.policy[rows] = output.policy
            found.root_value[rows] = output.root_value
            # Which roots failed is not told, and a model that fails at one is no judge of others.
            found.is_found[rows] = output.stats.n_failed == 0
            report.n_with_prior += int(mix.available.sum()) if mix is not None else 0
        report.n_positions = n_roots
        report.n_failed = int((~found.is_found).sum())
        return found

    def _ask_prior(self, batch: Roots) -> RootPrior | None:
        if self._prior is None or not any(batch.prompt):
            return None
        return self._prior.ask(batch.prompt, batch.options, batch.legal).collect()


def make_reanalyser(
    player: PlayerConfig,
    reanalysis: ReanalysisConfig,
    spec: GameSpec,
    *,
    unroll_steps: int,
    seed: int,
    prior_transport: PriorTransport | None,
    weight_source: WeightSource,
    source: ReanalysisSource,
) -> Reanalyser:
    """Builds everything from the settings that env actors search with.

    Its planner searches in this process also where a service searches for env actors, and bounds
    batches by `batch_steps` alone: pools are sized for acting.
    """
    search = replace(player.search, init_pages=0, recurrent_pages=0, max_roots=0)
    planner_seed, prior_seed = (
        int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(2)
    )
    model = make_search_model(player.model, spec, search, player.device)
    planner = Planner(
        model,
        search,
        n_envs=reanalysis.batch_steps,
        discount=player.discount,
        seed=planner_seed,
        device=player.device,
        injection=player.prior.injection,
    )
    prior = None
    if prior_transport is not None:
        prior = PriorClient(player.prior, prior_transport, seed=prior_seed)
    return Reanalyser(
        model=model,
        planner=planner,
        prior=prior,
        weight_source=weight_source,
        source=source,
        unroll_steps=unroll_steps,
    )
