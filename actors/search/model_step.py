"""The model call of one simulation, over buffers that never move.

Page ids, actions and steps of all leaves go to the device in one transfer; rewards, values and
logits come back in one; latents, keys and values stay there. Fixed buffers and padded row counts
let CUDA replay the whole call as one graph; the CPU runs the same code without padding.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from actors.search.tree import Leaves
from cache.pages import NULL_PAGE, SPARE_PAGE, Pages
from learner.world_model import WorldModel

WARM_UP_CALLS = 3  # before a capture: libraries choose their kernels and allocate (CUDA graphs)


def padded_rows(n_rows: int, device: torch.device) -> int:
    """Rows of the buffers that serve `n_rows` leaves: a few sizes on CUDA, so a few graphs."""
    if device.type == "cpu":
        return n_rows
    return 1 << (n_rows - 1).bit_length() if n_rows <= 64 else -(-n_rows // 64) * 64


class ModelStep:
    """Evaluates the leaves of B roots, K each, in one call; used by one planner's thread.

    seconds_model: grows; on CUDA it holds the wait for the whole replayed graph
    """

    def __init__(
        self, model: WorldModel, pages: Pages, n_roots: int, n_leaves: int, device: torch.device
    ) -> None:
        self.n_rows = padded_rows(n_roots * n_leaves, device)
        self._n_leaves = n_leaves
        self.seconds_model = 0.0
        self._model = model
        self._device = device
        n_context = model.config.window_steps - 1
        on_host = device.type == "cpu"
        shape = (n_context + 3, self.n_rows)
        self._host_asked = torch.zeros(shape, dtype=torch.int64, pin_memory=not on_host)
        self._asked = self._host_asked if on_host else self._host_asked.to(device)
        self._pages = self._asked[: n_context + 1].t()
        self._action, self._step = self._asked[n_context + 1 :]
        self._context = model.token_context(pages, self.n_rows, n_context)
        # Scalars are decoded in float32 at least, whatever the parameters are stored in.
        dtype = torch.promote_types(pages.kv.dtype, torch.float32)
        shape = (self.n_rows, 2 + model.spec.n_actions)
        self._outputs = torch.zeros(shape, device=device, dtype=dtype)
        self._host_outputs = (
            self._outputs if on_host else torch.zeros(shape, dtype=dtype, pin_memory=True)
        )
        self._graph: torch.cuda.CUDAGraph | None = None

    def leaves(self, n_roots: int) -> Leaves:
        """What a search of `n_roots` roots fills before each `run`; the other rows go nowhere."""
        n_rows, asked = n_roots * self._n_leaves, self._host_asked.numpy()
        asked[:, n_rows:] = 0
        asked[:-3, n_rows:], asked[-3, n_rows:] = NULL_PAGE, SPARE_PAGE
        return Leaves(asked[:, :n_rows], np.zeros((n_roots, self._n_leaves), np.int64))

    def run(self) -> NDArray[np.floating]:
        """Evaluate all leaves and write their pages.

        Returns [rows, 2 + A]: reward into each leaf, its value, its policy logits; a view that the
        next call overwrites.
        """
        if self._device.type == "cpu":
            self._evaluate()
        else:
            self._replay()
        return self._host_outputs.numpy()

    def _evaluate(self) -> None:
        model, context = self._model, self._context
        context.read(self._pages, self._step)
        start = perf_counter()
        reward, latent = model.action_token(self._action, context)
        logits, value = model.observation_token(latent, context)
        self._outputs[:, :2] = model.support.decode(torch.stack((reward, value), dim=1))
        self._outputs[:, 2:] = logits
        self.seconds_model += perf_counter() - start
        context.write()

    def _replay(self) -> None:
        start = perf_counter()
        self._asked.copy_(self._host_asked, non_blocking=True)
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()
        self._host_outputs.copy_(self._outputs, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        self.seconds_model += perf_counter() - start

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record `_evaluate`; new weights need no new graph, they are copied into old tensors."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                self._evaluate()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._evaluate()
        return graph
