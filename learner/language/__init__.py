"""The language model's side of learning: prompts, label scores, LoRA tuning, adapters on disk."""

from learner.language.adapter import Adapter, AdapterCheck
from learner.language.config import LanguageConfig
from learner.language.model_folder import resolve_model, validate_model
from learner.language.prompt import PromptBuilder, ScoringPrompt, mask_options
from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm

__all__ = [
    "Adapter",
    "AdapterCheck",
    "LanguageConfig",
    "PromptBuilder",
    "ScoringPrompt",
    "TinyRecipe",
    "ensure_tiny_llm",
    "mask_options",
    "resolve_model",
    "validate_model",
]
