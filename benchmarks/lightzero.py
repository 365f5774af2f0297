"""LightZero 0.2.0 as a child process with the weights of one of our models, asked line by line."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from peers import interpreter
from search_speed import Case, make_model

from learner.world_model import WorldModel
from learner.world_model.support import Support

SCRIPT = Path(__file__).with_name("lightzero_search.py")
SUPPORT_MAX = 50.0  # LightZero's 101 bins are one apart


def comparable_model(n_roots: int, n_simulations: int, width: int) -> WorldModel:
    """Ours with the shapes of LightZero's defaults: 2 layers, 8 heads, a window of 4 steps."""
    model = make_model(Case(n_roots, n_simulations, width, 2, 4, 8, 4, mlp_hidden=width))
    model.support = Support(model.config.support_size, SUPPORT_MAX)
    return model


class LightZero:
    """Its search over B episodes; use as a context manager.

    Equal to ours: all shapes, the weights of transformer, action embedding and heads, and the bins
    of values and rewards, for models of `comparable_model`. Not equal:
    - our linear layer between latent and transformer, which it lacks: E^2 multiplications a node
      less for LightZero
    - learned absolute positions against rotary ones: an addition against a rotation, less for it
    - it runs four heads at each token, we run the two that are read: about 2 E^2 a token more for
      it; that is its code, not its weights
    - it encodes the observation before the root's as well, to find its cache entry: more for it
    - the encoder's weights; GELU against SiLU; three products for query, key and value against one:
      little
    - its matrices lie row by row, as torch makes them, ours column by column, which MKL multiplies
      faster by few rows: more for it. `same_layout` gives it ours.
    - the torch that pip chose for each environment
    """

    def __init__(
        self,
        model: WorldModel,
        *,
        n_roots: int,
        n_simulations: int,
        discount: float,
        core: int | None = None,
        device: str = "cpu",
        same_layout: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        weights = Path(self._folder.name) / "weights.npz"
        np.savez(weights, **{k: v.float().cpu().numpy() for k, v in model.state_dict().items()})
        sizes = {
            "n_roots": n_roots,
            "n_simulations": n_simulations,
            "discount": discount,
            "n_actions": model.spec.n_actions,
            "n_inputs": model.spec.stacked_shape[0],
            "embed_dim": model.config.embed_dim,
            "n_layers": model.config.n_layers,
            "n_heads": model.config.n_heads,
        }
        settings = {
            "sizes": sizes,
            "weights": str(weights),
            "core": core,
            "device": device,
            "same_layout": same_layout,
        }
        self._log = (Path(self._folder.name) / "log").open("w+")
        self._child = subprocess.Popen(
            [interpreter("lightzero"), SCRIPT, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def ask(self, command: str) -> Any:
        """Answer to one command of the child. RuntimeError with its last words when it has died."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(command + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            raise RuntimeError(f"LightZero's process ended:\n{self._log.read()[-3000:]}")
        return json.loads(answer)

    def __enter__(self) -> LightZero:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.wait()
        self._log.close()
        self._folder.cleanup()
