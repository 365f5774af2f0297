"""Settings of the language-model prior."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from actors.search.root_prior import InjectionConfig
from learner.language.prompt_config import PromptConfig

FLOAT32_GAP = 1e-3  # engine against trainer; what was measured stays below 1e-4
HALF_GAP = 0.25  # bfloat16 moves single log-probabilities by up to 0.1


@dataclass(frozen=True, slots=True)
class PriorConfig:
    """A language model that suggests moves at the root of every search."""

    enabled: bool = True  # false starts no language model at all
    model: str | None = None  # folder or Hugging Face name of a causal LM; none = a tiny one
    adapter: str | None = None  # folder made by launch/pretrain_prior.py, to begin with
    # vllm batches questions over actors and caches prefixes; transformers runs anywhere
    backend: Literal["vllm", "transformers"] = "vllm"

    num_engines: int = 1  # engines side by side, each with a copy of the model; actors share them
    # steps of an environment from one question to the next; a change of its coarse state, where
    # it has one, or of its options asks at once. 1 asks at every step
    query_every: int = 1
    deadline_s: float = 1.0  # seconds from asking until a search goes on without; higher waits more
    retry_s: float = 5.0  # seconds between attempts while the engine does not answer
    max_in_flight: int = 256  # questions one client may have open; beyond it searches go without
    cache_size: int = 20_000  # answers each env actor keeps, about 1 KB each; 0 keeps none

    temperature: float = 1.0  # flattens the label distribution; above 1 trusts the model less
    # answers in words: the mean log-probability of an option's tokens instead of their sum, which
    # is low for what is long, above all in a model that knows nothing
    per_token: bool = False
    epsilon_uniform: float = 0.05  # share of a uniform prior mixed in, so that no action is lost
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)

    max_concurrent: int = 64  # questions in one engine step; higher takes more memory
    kv_cache_mb: int = 256  # memory of the engine's prefix cache
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: float32 on CPUs
    publish_tolerance: float = 0.0  # largest log-prob gap of a new adapter; 0 = by dtype

    def __post_init__(self) -> None:
        if self.model is not None and not self.model.strip():
            raise ValueError(
                "model must be a folder or a name, got ''; leave it out for the tiny one"
            )
        for name in ("deadline_s", "retry_s", "temperature"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "num_engines",
            "query_every",
            "max_in_flight",
            "max_concurrent",
            "kv_cache_mb",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.cache_size < 0:
            raise ValueError(f"cache_size must be at least 0, got {self.cache_size}; 0 keeps none")
        if not 0.0 <= self.epsilon_uniform <= 1.0:
            raise ValueError(
                f"epsilon_uniform must lie in [0, 1], got {self.epsilon_uniform}; 0.05 is usual"
            )
        if self.publish_tolerance < 0.0:
            raise ValueError(
                f"publish_tolerance must not be negative, got {self.publish_tolerance}"
            )

    def largest_gap(self, dtype: str) -> float:
        """Largest log-probability gap to the trainer that a new adapter may show."""
        return self.publish_tolerance or (FLOAT32_GAP if dtype == "float32" else HALF_GAP)
