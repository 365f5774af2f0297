"""One tiny language model for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sharpened, so that a wrong score shows."""
    recipe = TinyRecipe(weight_scale=4.0, n_corpus_lines=300)
    return ensure_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny", recipe)
