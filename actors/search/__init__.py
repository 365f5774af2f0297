"""Batched Monte-Carlo tree search over a world model, with a language model's prior at the root."""

from actors.search.client import SearchClient, SearchSeat
from actors.search.config import SearchConfig
from actors.search.planner import Planner
from actors.search.result import SearchOutput, SearchStats
from actors.search.root_prior import InjectionConfig, RootPrior, mix_root_prior

__all__ = [
    "InjectionConfig",
    "Planner",
    "RootPrior",
    "SearchClient",
    "SearchConfig",
    "SearchOutput",
    "SearchSeat",
    "SearchStats",
    "mix_root_prior",
]
