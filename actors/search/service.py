"""Searches for many acting processes in one place, a GPU by preference.

Plain Python and one thread; `search_actor` puts a process, a queue and a clock around it. One
planner holds the contexts of every environment of every client: raw tokens of all of them, KV
pages of as many as `search.init_pages` allows, least recently searched ones given up first and
rebuilt exactly.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from actors.search.config import SearchConfig
from actors.search.history import NO_ACTION, Ints
from actors.search.messages import SearchReply, SearchRequest
from actors.search.planner import Planner
from actors.search.result import SearchOutput, SearchStats
from actors.search.root_prior import InjectionConfig, RootPrior
from cache.pool import PoolStats
from learner.weights import NO_VERSION, WeightSource, load_weights
from learner.world_model import WorldModel, WorldModelConfig
from replay_service.segment import GameSpec

PULL_EVERY_BATCHES = 8  # asking for newer weights costs a call; 8 steps are what a collect takes
NOTHING_LOST: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """What a service did since it was last asked; metric names as in docs/metrics.md."""

    metrics: dict[str, float]
    pools: dict[str, PoolStats]


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request whose contexts are in place; `index` among the requests of one run."""

    index: int
    request: SearchRequest
    envs: Ints


class SearchService:
    """Answers requests in batches; a batch is searched by one version of the weights."""

    def __init__(
        self, planner: Planner, model: WorldModel, weights: WeightSource, n_envs: Sequence[int]
    ) -> None:
        """n_envs: environments of each client, whose contexts lie one after another."""
        if sum(n_envs) != planner.n_envs:
            raise ValueError(f"planner has {planner.n_envs} environments, clients {sum(n_envs)}")
        self._planner = planner
        self._model = model
        self._weights = weights
        self._first_env = np.concatenate(([0], np.cumsum(n_envs)))
        self._incarnations: dict[int, int] = {}
        self._until_pull = 0
        self._n_batches = self._n_roots = self._n_restored = 0

    @property
    def max_roots(self) -> int:
        """Most roots of one batch."""
        return self._planner.config.max_roots or self._planner.n_envs

    def run(self, requests: Sequence[SearchRequest]) -> list[SearchReply | ValueError]:
        """One reply for each request; a request that can't be served gets the reason instead.

        Raises what the model or the device raises: then nothing of this service can be relied on.
        """
        replies: list[SearchReply | ValueError] = [SearchReply(None, NOTHING_LOST)] * len(requests)
        admitted: list[_Admitted] = []
        for index, request in enumerate(requests):
            if not _has_room(admitted, request, self.max_roots):
                self._search(admitted, replies)
                admitted = []
            try:
                envs = self._envs(request)
                lost = self._admit(request, envs)
            except ValueError as error:
                replies[index] = error
                continue
            if len(lost):
                replies[index] = SearchReply(None, lost)
            else:
                admitted.append(_Admitted(index, request, envs))
        self._search(admitted, replies)
        return replies

    def stats(self) -> ServiceStats:
        """What happened since the last call of this."""
        metrics = {
            "search_served_batches": float(self._n_batches),
            "search_served_restored": float(self._n_restored),
            "search_served_clients": float(len(self._incarnations)),
        }
        if self._n_batches:
            metrics["search_served_batch_roots_mean"] = self._n_roots / self._n_batches
        self._n_batches = self._n_roots = self._n_restored = 0
        return ServiceStats(metrics, self._planner.cache_stats(reset=True))

    def _envs(self, request: SearchRequest) -> Ints:
        """The planner's numbers of a request's environments."""
        n_clients = len(self._first_env) - 1
        if not 0 <= request.client < n_clients:
            raise ValueError(f"client must lie in [0, {n_clients}), got {request.client}")
        first, end = self._first_env[request.client : request.client + 2]
        envs = first + request.env_ids
        if request.n_roots == 0 or envs.min() < first or envs.max() >= end:
            raise ValueError(
                f"client {request.client} has environments [0, {end - first}), "
                f"got env_ids {request.env_ids}"
            )
        return envs

    def _admit(self, request: SearchRequest, envs: Ints) -> Ints:
        """Bring the contexts to the step before the request's; returns the rows that lack it."""
        known = self._incarnations.get(request.client, -1)
        if request.incarnation < known:
            raise ValueError(
                f"client {request.client} was replaced: incarnation {known} has asked since, "
                f"got {request.incarnation}"
            )
        if request.incarnation > known:
            first, end = self._first_env[request.client : request.client + 2]
            self._planner.forget(np.arange(first, end))
            self._incarnations[request.client] = request.incarnation
        if request.tail is not None and request.lost is not None:
            self._planner.restore(envs[request.lost], request.tail)
            self._n_restored += len(request.lost)
        is_held = self._planner.newest_steps(envs) == request.steps - 1
        return np.flatnonzero(~is_held & (request.last_action != NO_ACTION))

    def _search(
        self, admitted: Sequence[_Admitted], replies: list[SearchReply | ValueError]
    ) -> None:
        if not admitted:
            return
        self._pull_weights()
        requests = [a.request for a in admitted]
        envs = np.concatenate([a.envs for a in admitted])
        output = self._planner.search(
            envs,
            np.concatenate([r.obs for r in requests]),
            np.concatenate([r.last_action for r in requests]),
            np.concatenate([r.legal for r in requests]),
            mix=_join_priors(requests),
            add_noise=_spread(requests, [r.add_noise for r in requests]),
            env_steps=_spread(requests, [r.env_steps for r in requests]),
            temperature=np.concatenate([r.temperature for r in requests]),
            n_simulations=requests[0].n_simulations,
        )
        self._n_batches += 1
        self._n_roots += len(envs)
        first = 0
        for a in admitted:
            rows = slice(first, first + a.request.n_roots)
            stats = _share(output, a.request.n_roots / len(envs), is_first=first == 0)
            own, row = output.rows(rows, stats), a.request.shows_tree
            if row is not None:
                tree = self._planner.draw_tree(int(a.envs[row]))
                own = replace(own, tree=tree, tree_row=row)
            replies[a.index] = SearchReply(own, NOTHING_LOST)
            first = rows.stop

    def _pull_weights(self) -> None:
        if self._until_pull == 0 or self._planner.weight_version == NO_VERSION:
            weights = self._weights.pull_if_newer(self._planner.weight_version)
            if weights is not None:
                load_weights(self._model, weights)
                self._planner.weights_changed(weights.version)
            self._until_pull = PULL_EVERY_BATCHES
        self._until_pull -= 1


def make_search_model(
    config: WorldModelConfig, spec: GameSpec, search: SearchConfig, device: str
) -> WorldModel:
    """A world model to search in, its parameters stored as `device` computes fastest.

    On CUDA they are bfloat16 unless `search.bf16` is false.
    """
    model = WorldModel(config, spec).to(device).eval()
    if torch.device(device).type == "cpu":
        model.lay_out_for_few_rows()
    elif search.bf16:
        model.store_parameters_in(torch.bfloat16)
    return model


def make_service(
    *,
    search: SearchConfig,
    injection: InjectionConfig,
    model: WorldModelConfig,
    spec: GameSpec,
    discount: float,
    device: str,
    seed: int,
    weights: WeightSource,
    n_envs: Sequence[int],
) -> SearchService:
    """A service with a world model of its own; parameters as of a run's configuration."""
    world_model = make_search_model(model, spec, search, device)
    planner = Planner(
        world_model,
        search,
        n_envs=sum(n_envs),
        discount=discount,
        seed=seed,
        device=device,
        injection=injection,
    )
    return SearchService(planner, world_model, weights, n_envs)


def _has_room(admitted: Sequence[_Admitted], request: SearchRequest, max_roots: int) -> bool:
    """Whether a batch can take one more request; two of one client would meet in one context."""
    if any(a.request.client == request.client for a in admitted):
        return False
    if any(a.request.n_simulations != request.n_simulations for a in admitted):
        return False
    n_roots = sum(a.request.n_roots for a in admitted)
    return n_roots == 0 or n_roots + request.n_roots <= max_roots


def _spread(requests: Sequence[SearchRequest], values: Iterable[object]) -> NDArray[np.generic]:
    """Each request's value at all of its rows."""
    return np.repeat(np.array(list(values)), [r.n_roots for r in requests])


def _join_priors(requests: Sequence[SearchRequest]) -> RootPrior | None:
    """Priors of all rows; rows of requests without one have none available."""
    if all(r.mix is None for r in requests):
        return None
    priors = [
        r.mix
        if r.mix is not None
        else RootPrior(np.zeros(r.legal.shape, np.float32), np.zeros(r.n_roots, np.bool_))
        for r in requests
    ]
    return RootPrior(
        np.concatenate([p.probabilities for p in priors]),
        np.concatenate([p.available for p in priors]),
    )


def _share(output: SearchOutput, share: float, *, is_first: bool) -> SearchStats:
    """A request's part of its batch's statistics, so that sums over clients are the service's.

    Costs go by rows (simulations are rounded); failures and rebuilds, which the planner counts
    per batch, go to the batch's first request.
    """
    stats = output.stats
    return replace(
        stats,
        simulations=round(stats.simulations * share),
        seconds_model=stats.seconds_model * share,
        seconds_tree=stats.seconds_tree * share,
        seconds_total=stats.seconds_total * share,
        n_rebuilt=stats.n_rebuilt if is_first else 0,
        n_failed=stats.n_failed if is_first else 0,
    )


class LocalSearchTransport:
    """Reaches a service in this process, at once: the serial runtime's way, deterministic."""

    def __init__(self, service: SearchService) -> None:
        self._service = service
        self._replies: dict[Hashable, SearchReply | ValueError] = {}
        self._n_submitted = 0

    def submit(self, request: SearchRequest) -> int:
        self._n_submitted += 1
        self._replies[self._n_submitted] = self._service.run([request])[0]
        return self._n_submitted

    def result(self, handle: Hashable) -> SearchReply:
        reply = self._replies.pop(handle)
        if isinstance(reply, ValueError):
            raise reply
        return reply
