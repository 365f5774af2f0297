"""The language-model prior: an engine that scores options, and the client of the acting side."""

from actors.prior.backend import LocalPriorTransport, PriorTransport, PriorUnavailable
from actors.prior.client import PendingPrior, PriorClient
from actors.prior.config import PriorConfig

__all__ = [
    "LocalPriorTransport",
    "PendingPrior",
    "PriorClient",
    "PriorConfig",
    "PriorTransport",
    "PriorUnavailable",
]
