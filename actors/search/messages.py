"""What a client and a search service say to each other: one request and one reply a search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.search.history import HistoryTail, Ints
from actors.search.result import SearchOutput
from actors.search.root_prior import RootPrior


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Append one real step to B environments of one client and search from it.

    client, incarnation: who asks; a higher incarnation is a new process in the place of an old one
    env_ids:     [B] int64, numbered by the client
    steps:       [B] int64, of `obs` in its episode, so that nothing is appended twice or in a gap
    obs:         [B, *stacked_shape]
    last_action: [B] int64, -1 resets the environment's context
    legal:       [B, A] bool
    mix:         a language model's prior, None without
    add_noise:   exploration noise at the roots, how much of the configured
    env_steps:   of the run, for decays
    temperature: [B] float64
    n_simulations: fewer than the settings', None for all of them
    shows_tree:  row whose tree is to come along, None for no one's
    lost:        rows whose context the service said it has not, with `tail`, what it lacks
    """

    client: int
    incarnation: int
    env_ids: Ints
    steps: Ints
    obs: NDArray[np.generic]
    last_action: Ints
    legal: NDArray[np.bool_]
    mix: RootPrior | None
    add_noise: float
    env_steps: int
    temperature: NDArray[np.float64]
    n_simulations: int | None = None
    shows_tree: int | None = None
    lost: Ints | None = None
    tail: HistoryTail | None = None

    @property
    def n_roots(self) -> int:
        return len(self.env_ids)


@dataclass(frozen=True, slots=True)
class SearchReply:
    """Either the search's result, or `lost` rows: then nothing was searched, ask again with them.

    lost: [K] int64, rows whose context the service does not hold up to the step before
    """

    output: SearchOutput | None
    lost: Ints
