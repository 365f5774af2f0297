"""The model as it was before tuning, by which its drift is measured: each state is read once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from learner.language.prompt import ScoreRequest

MOST_STATES = 20_000


class Reference:
    """log q of the options, [K] float32 each; never changes, so that answers are kept.

    The adapter's first values are put in place for as long as it takes to read what is not known.
    """

    def __init__(
        self,
        trained: Mapping[str, Tensor],
        log_probs: Callable[[Sequence[ScoreRequest]], list[Tensor]],
    ) -> None:
        self._trained = trained
        self._log_probs = log_probs
        self._first = {name: p.detach().clone() for name, p in trained.items()}
        self._known: OrderedDict[ScoreRequest, Tensor] = OrderedDict()

    @torch.no_grad()
    def log_q(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """Log-probabilities among the options of each request."""
        fresh = list(dict.fromkeys(r for r in requests if r not in self._known))
        if fresh:
            now = {name: p.detach().clone() for name, p in self._trained.items()}
            try:
                self._set(self._first)
                for request, scores in zip(fresh, self._log_probs(fresh), strict=True):
                    self._known[request] = scores.log_softmax(0)
            finally:
                self._set(now)
        answers = [self._known[request] for request in requests]
        while len(self._known) > MOST_STATES:
            self._known.popitem(last=False)
        return answers

    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(values[name])
