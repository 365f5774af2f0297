"""The real side of a search: every environment's context, extended by one step per search.

Owns the raw history and the KV pages. A step's tokens are written once into the environment's
ring; where pages were evicted or belong to old weights, the window is first rebuilt exactly by
running the raw tokens through scratch pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.search.config import SearchConfig
from actors.search.history import NO_ACTION, History, HistoryTail, Ints
from cache.kv_cache_manager import KVCacheManager
from cache.pages import ACTION_SLOT, NULL_PAGE, PageShape
from cache.pool import EMPTY
from learner.world_model import WorldModel

MAX_TOKEN_CONTEXTS = 32  # row counts whose buffers are kept at once


@dataclass(frozen=True, slots=True)
class RootStep:
    """The newest real step of B environments, ready to be searched from.

    steps [B]; window [B, C] pages of the last C = W - 1 steps, the root's own included
    logits [B, A] and value [B]: the world model's, float64
    n_rebuilt: rows whose window had to be rebuilt
    """

    steps: Ints
    window: Ints
    logits: NDArray[np.float64]
    value: NDArray[np.float64]
    n_rebuilt: int


def padded_rows(n_rows: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most half as many rows again.

    Convolution libraries keep what they compile for every row count, megabytes for each.
    """
    size = 1 << max(n_rows - 1, 0).bit_length()
    return 3 * size // 4 if size >= 4 and 3 * size // 4 >= n_rows else size


class Contexts:
    """Contexts of `n_envs` environments; call within `torch.inference_mode`."""

    def __init__(
        self, model: WorldModel, cache: KVCacheManager, n_envs: int, device: torch.device
    ) -> None:
        config, spec = model.config, model.spec
        self.cache = cache
        self.seconds_model = 0.0  # grows; the planner reads differences
        self._model = model
        self._device = device
        self._token_context = lru_cache(MAX_TOKEN_CONTEXTS)(
            lambda n_rows: model.token_context(cache.pages, n_rows, self.n_window)
        )
        self._n_replay = config.receptive_steps - 1
        self._history = History(n_envs, config.receptive_steps, spec.stacked_shape, spec.obs_dtype)

    def advance(
        self, envs: Ints, obs: NDArray[np.generic], last_action: Ints, played: Ints
    ) -> RootStep:
        """Append (last_action, obs) to the environments' contexts.

        played [B]: place among the tree's pages, from 1, of the node that the last action led to,
        or -1; that page must already hold the action token exactly.
        """
        cache = self.cache
        starts = last_action == NO_ACTION
        if starts.any():
            cache.clear("env", envs[starts])
        steps = self._history.append(envs, obs, last_action)
        cache.hold_rings(envs)
        before = steps[:, None] + np.arange(-self.n_window, 0)
        lost = np.flatnonzero((cache.lookup(envs[:, None], before, EMPTY) == EMPTY).any(axis=1))
        if len(lost):
            self._rebuild(envs[lost], steps[lost])
        tree_page = np.full_like(steps, EMPTY)
        moved = np.flatnonzero(played > 0)
        if len(moved):
            tree_page[moved] = cache.lookup(envs[moved], steps[moved], played[moved])
        latent = self._encode(obs)
        context = cache.ring_pages(envs[:, None], before)
        own = cache.ring_pages(envs, steps)
        logits, value = self._write_step(latent, last_action, steps, context, own, tree_page)
        cache.publish(envs, steps)
        window = np.concatenate((context, own[:, None]), axis=1)[:, 1:]
        outputs = torch.cat((logits, value[:, None]), dim=1).double().cpu().numpy()
        return RootStep(steps, window, outputs[:, :-1], outputs[:, -1], len(lost))

    def newest_steps(self, envs: Ints) -> Ints:
        """Step of each environment's newest observation [B], NO_STEP where there is none."""
        return self._history.step[envs]

    def forget(self, envs: Ints) -> None:
        """Drop everything about `envs`; each must start an episode next, or be restored."""
        self._history.forget(envs)
        self.cache.clear("env", envs)

    def restore(self, envs: Ints, tail: HistoryTail) -> None:
        """Take over the raw tokens of another's contexts; pages are rebuilt from them on use."""
        self.forget(envs)
        self._history.restore(envs, tail)

    @property
    def n_window(self) -> int:
        """W - 1: earlier steps that a token may see."""
        return self.cache.window_steps - 1

    def _encode(self, obs: NDArray[np.generic]) -> Tensor:
        start = perf_counter()
        rows = self._to_device(obs)
        padded = rows.new_zeros((padded_rows(len(rows)), *rows.shape[1:]))
        padded[: len(rows)] = rows
        latent = self._model.encode(padded)[: len(rows)]
        self.seconds_model += perf_counter() - start
        return latent

    def _write_step(
        self,
        latent: Tensor,
        action: Ints,
        steps: Ints,
        context: Ints,
        own: Ints,
        tree_page: Ints,
    ) -> tuple[Tensor, Tensor]:
        """Run one real step's tokens over `context` pages and fill its `own` pages.

        The action token comes from `tree_page` if every row that has one is known there.
        Returns policy logits [B, A] and values [B].
        """
        pages = self.cache.pages
        has_action = self._to_device(action != NO_ACTION)
        known = (tree_page != EMPTY) | (action == NO_ACTION)
        token_context = self._token_context(len(steps))
        ids = self._to_device(own)
        pages.mark(ids, True)
        token_context.read(
            self._to_device(np.concatenate((context, own[:, None]), axis=1)), self._to_device(steps)
        )
        start = perf_counter()
        if known.all():
            source = self._to_device(np.maximum(tree_page, NULL_PAGE))
            both = pages.kv.index_select(0, source)
        else:
            self._model.action_token(self._to_device(np.maximum(action, 0)), token_context)
            both = token_context.own()
        token_context.replace_action(both[..., ACTION_SLOT, :], has_action)
        logits, value_logits = self._model.observation_token(latent, token_context)
        value = self._model.support.decode(value_logits)
        self.seconds_model += perf_counter() - start
        token_context.write()
        pages.mark(ids, has_action)
        return logits, value

    def _rebuild(self, envs: Ints, steps: Ints) -> None:
        """Recompute the pages of the W - 1 steps before `steps` from raw tokens, in chunks."""
        scratch = self.cache.scratch
        for first in range(0, len(envs), scratch.n_blocks):
            chunk = slice(first, first + scratch.n_blocks)
            blocks = scratch.acquire(np.arange(len(envs[chunk])))
            self._replay(envs[chunk], steps[chunk], blocks)
            self._adopt(envs[chunk], steps[chunk], blocks)

    def _replay(self, envs: Ints, steps: Ints, blocks: Ints) -> None:
        """Run the raw tokens of steps - L * (W - 1) .. steps - 1 through scratch blocks."""
        past = steps[:, None] + np.arange(-self._n_replay, 0)
        obs = self._history.obs(envs[:, None], past)
        latents = self._encode(obs.reshape(-1, *obs.shape[2:])).unflatten(0, past.shape)
        for i in range(self._n_replay):
            rows = np.flatnonzero(past[:, i] >= 0)
            if len(rows) == 0:
                continue
            step = past[rows, i]
            before = step[:, None] + np.arange(-self.n_window, 0)
            # Older than the replay is unknown, and out of reach of the pages that will be kept.
            reached = before >= np.maximum(past[rows, :1], 0)
            context = np.where(reached, self._scratch_pages(blocks[rows], before), NULL_PAGE)
            self._write_step(
                latents[self._to_device(rows), i],
                self._history.action(envs[rows], step),
                step,
                context,
                self._scratch_pages(blocks[rows, None], step[:, None])[:, 0],
                np.full_like(step, EMPTY),
            )

    def _adopt(self, envs: Ints, steps: Ints, blocks: Ints) -> None:
        """Move the rebuilt windows from scratch into the environments' rings."""
        before = steps[:, None] + np.arange(-self.n_window, 0)
        real = before >= 0
        source = self._scratch_pages(blocks, before)[real]
        target = self.cache.ring_pages(envs[:, None], before)[real]
        self.cache.pages.copy(self._to_device(source), self._to_device(target))
        self.cache.publish(envs[:, None], before)
        self.cache.clear("scratch")

    def _scratch_pages(self, blocks: Ints, steps: Ints) -> Ints:
        """Scratch page of each step [n, K] of each block [n] or [n, 1]."""
        offsets = steps % self.cache.window_steps
        return self.cache.scratch.page_ids(blocks.reshape(-1, 1), offsets)

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """Blocks of each pool: rings, trees, and rows rebuilt at once."""

    n_init: int
    n_recurrent: int
    n_scratch: int


def pool_sizes(config: SearchConfig, window_steps: int, n_envs: int) -> PoolSizes:
    """What `n_envs` environments get; ValueError when the configured pools cannot do."""
    n_roots = min(config.max_roots or n_envs, n_envs)
    blocks = []
    for name, n_pages, block_pages in (
        ("init_pages", config.init_pages, window_steps),
        ("recurrent_pages", config.recurrent_pages, config.n_simulations),
    ):
        if n_pages == 0:
            blocks.append(n_envs)
            continue
        if n_pages < n_roots * block_pages:
            raise ValueError(
                f"search.{name}={n_pages} is too small: searching {n_roots} roots with "
                f"n_simulations={config.n_simulations} and window_steps={window_steps} needs "
                f"{n_roots} * {block_pages} = {n_roots * block_pages} pages; raise it, or "
                "lower search.max_roots, search.n_simulations or model.window_steps"
            )
        blocks.append(min(n_pages // block_pages, n_envs))
    return PoolSizes(n_init=blocks[0], n_recurrent=blocks[1], n_scratch=n_roots)


def make_cache(
    model: WorldModel, config: SearchConfig, n_envs: int, device: torch.device
) -> KVCacheManager:
    """Pages for `n_envs` environments; ValueError when the configured pools cannot do."""
    sizes = model.config
    blocks = pool_sizes(config, sizes.window_steps, n_envs)
    return KVCacheManager(
        PageShape(sizes.n_layers, sizes.n_heads, sizes.embed_dim // sizes.n_heads),
        n_envs=n_envs,
        window_steps=sizes.window_steps,
        tree_pages=config.n_simulations,
        n_init=blocks.n_init,
        n_recurrent=blocks.n_recurrent,
        n_scratch=blocks.n_scratch,
        init_eviction=config.init_eviction,
        recurrent_eviction=config.recurrent_eviction,
        device=device,
        dtype=next(model.parameters()).dtype,
        debug=config.debug,
    )
