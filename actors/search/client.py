"""Searching elsewhere: what an acting process holds in place of a planner of its own.

The service keeps contexts, pages and trees. The client keeps the raw tokens of its environments,
so that a service that has lost a context, because it was restarted, gets it back exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.search.arguments import check_arguments
from actors.search.choice import GREEDY
from actors.search.config import SearchConfig
from actors.search.history import History
from actors.search.messages import SearchReply, SearchRequest
from actors.search.result import SearchOutput
from actors.search.root_prior import RootPrior
from cache.pool import PoolStats
from learner.world_model import WorldModelConfig
from replay_service.segment import GameSpec

PATIENCE_S = 90.0  # a restarted service imports, builds its model and compiles in half of that
RETRY_AFTER_S = 0.5


class SearchUnavailable(RuntimeError):
    """The service died or did not answer in time; it may come back."""


class SearchTransport(Protocol):
    """The way to a search service."""

    def submit(self, request: SearchRequest) -> Hashable:
        """Send a request; returns a handle. Raises SearchUnavailable."""

    def result(self, handle: Hashable) -> SearchReply:
        """Wait for the reply. Raises SearchUnavailable, or ValueError for a bad request."""


@dataclass(frozen=True, slots=True)
class SearchSeat:
    """A client's place at a search service."""

    transport: SearchTransport
    client: int
    incarnation: int


class SearchClient:
    """Stands for `n_envs` environments at the service; used from one thread."""

    def __init__(
        self,
        seat: SearchSeat,
        config: SearchConfig,
        model: WorldModelConfig,
        spec: GameSpec,
        *,
        n_envs: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.n_envs = n_envs
        self.n_retries = 0  # requests sent again because the service could not be reached
        self._seat = seat
        self._max_roots = config.max_roots
        self._spec = spec
        self._history = History(n_envs, model.receptive_steps, spec.stacked_shape, spec.obs_dtype)
        self._clock = clock
        self._sleep = sleep

    def begin(
        self,
        env_ids: NDArray[np.integer],
        obs: NDArray[np.generic],
        last_action: NDArray[np.integer],
        legal: NDArray[np.bool_] | None = None,
        mix: RootPrior | None = None,
        add_noise: float = False,
        env_steps: int = 0,
        temperature: NDArray[np.floating] | float = GREEDY,
        n_simulations: int | None = None,
        shows_tree: int | None = None,
    ) -> PendingSearch:
        """Send what `Planner.search` takes, and return at once; one search an environment.

        shows_tree: row whose tree is to come along with the result
        """
        envs, actions, legal = check_arguments(
            self._spec, self.n_envs, self._max_roots, env_ids, obs, last_action, legal
        )
        request = SearchRequest(
            client=self._seat.client,
            incarnation=self._seat.incarnation,
            env_ids=envs,
            steps=self._history.append(envs, obs, actions),
            obs=obs,
            last_action=actions,
            legal=legal,
            mix=mix,
            add_noise=add_noise,
            env_steps=env_steps,
            temperature=np.broadcast_to(temperature, len(envs)).astype(np.float64),
            n_simulations=n_simulations,
            shows_tree=shows_tree,
        )
        return PendingSearch(self, request, self._try_submit(request))

    def search(self, *args: object, **kwargs: object) -> SearchOutput:
        """`begin` and wait: what `Planner.search` takes and returns."""
        return self.begin(*args, **kwargs).result()  # type: ignore[arg-type]

    def cache_stats(self, reset: bool = False) -> dict[str, PoolStats]:
        """Nothing: the service reports its pools itself."""
        return {}

    def _try_submit(self, request: SearchRequest) -> Hashable | None:
        try:
            return self._seat.transport.submit(request)
        except SearchUnavailable:
            return None

    def _finish(self, request: SearchRequest, handle: Hashable | None) -> SearchOutput:
        """Ask until there is an answer; rows that the service lost go along the next time."""
        started, cause = self._clock(), "no connection"
        while True:
            try:
                if handle is not None:
                    reply = self._seat.transport.result(handle)
                    if reply.output is not None:
                        return reply.output
                    request = self._with_tail(request, reply)
                    handle = self._try_submit(request)
                    continue
            except SearchUnavailable as error:
                cause = str(error)
            waited = self._clock() - started
            if waited > PATIENCE_S:
                raise SearchUnavailable(
                    f"client {request.client} waited {waited:.0f} s for the search service: {cause}"
                )
            self.n_retries += 1
            self._sleep(RETRY_AFTER_S)
            handle = self._try_submit(request)

    def _with_tail(self, request: SearchRequest, reply: SearchReply) -> SearchRequest:
        tail = self._history.tail(request.env_ids[reply.lost])
        return replace(request, lost=reply.lost, tail=tail)


class PendingSearch:
    """A search that is under way at the service."""

    def __init__(
        self, client: SearchClient, request: SearchRequest, handle: Hashable | None
    ) -> None:
        self._client = client
        self._request = request
        self._handle = handle

    def result(self) -> SearchOutput:
        """Wait for the answer; call it once. SearchUnavailable when none came for long."""
        return self._client._finish(self._request, self._handle)
