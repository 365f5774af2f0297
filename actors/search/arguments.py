"""What may be asked of a search; the planner and the client of a search service refuse alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actors.search.history import NO_ACTION, Ints
from replay_service.segment import GameSpec


def check_arguments(
    spec: GameSpec,
    n_envs: int,
    max_roots: int,
    env_ids: NDArray[np.integer],
    obs: NDArray[np.generic],
    last_action: NDArray[np.integer],
    legal: NDArray[np.bool_] | None,
) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Environments [B], last actions [B] and legal actions [B, A]; ValueError names the row.

    max_roots: most environments in one call, 0 = all
    """
    envs, actions = np.asarray(env_ids, np.int64), np.asarray(last_action, np.int64)
    n_roots, most = len(envs), max_roots or n_envs
    if n_roots > most:
        raise ValueError(f"{n_roots} roots in one search, at most {most} allowed (max_roots)")
    if legal is None:
        legal = np.ones((n_roots, spec.n_actions), np.bool_)
    legal = np.asarray(legal, np.bool_)
    shapes = (obs.shape, actions.shape, legal.shape)
    wanted = ((n_roots, *spec.stacked_shape), (n_roots,), (n_roots, spec.n_actions))
    if shapes != wanted or n_roots == 0:
        raise ValueError(f"obs, last_action, legal have shapes {shapes}, expected {wanted}")
    if obs.dtype != np.dtype(spec.obs_dtype):
        raise ValueError(f"obs must be {spec.obs_dtype}, got {obs.dtype}")
    if envs.min() < 0 or envs.max() >= n_envs or len(np.unique(envs)) < n_roots:
        raise ValueError(f"env_ids must be distinct and in [0, {n_envs}), got {envs}")
    if actions.min() < NO_ACTION or actions.max() >= spec.n_actions:
        raise ValueError(f"last_action must lie in [-1, {spec.n_actions}), got {actions}")
    stuck = np.flatnonzero(~legal.any(axis=1))
    if len(stuck):
        raise ValueError(
            f"row {stuck[0]} (environment {envs[stuck[0]]}) has no legal action; "
            "an environment with nothing to do must end its episode"
        )
    return envs, actions, legal
