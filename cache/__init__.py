"""Caches of the acting side: pages of keys and values of the world model, and LLM priors."""

from cache.kv_cache_manager import KVCacheManager
from cache.pages import Pages, PageShape
from cache.pool import PagePool, PoolStats
from cache.prior_cache import PriorCache

__all__ = ["KVCacheManager", "PagePool", "PageShape", "Pages", "PoolStats", "PriorCache"]
