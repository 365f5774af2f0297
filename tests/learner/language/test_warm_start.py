"""Files of a warm start: any content is usable or a ValueError, and other models are told apart."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from learner.language.adapter import CHECK_FILE, SETTINGS_FILE, WEIGHTS_FILE
from learner.language.prompt_config import PromptConfig
from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm
from learner.language.warm_start import (
    ABOUT_FILE,
    WarmStart,
    model_fingerprint,
    read_warm_start,
)

SOUND = WarmStart("ab", 8, 16.0, asdict(PromptConfig()), "tests", {"n_steps": 1.0})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = [*asdict(SOUND), "format", "unknown"]
MANY = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def folder_with(path: Path, about: bytes) -> Path:
    for name in (SETTINGS_FILE, WEIGHTS_FILE, CHECK_FILE):
        (path / name).touch()
    (path / ABOUT_FILE).write_bytes(about)
    return path


def read_or_refuse(folder: Path) -> None:
    try:
        about = read_warm_start(folder)
    except ValueError as error:
        assert "prior.adapter" in str(error)
    else:
        assert 1 <= about.lora_rank <= 512 and about.lora_alpha > 0


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    SOUND.write(folder_with(tmp_path, b""))
    assert read_warm_start(tmp_path) == SOUND


@MANY
@given(content=VALUES)
def test_any_content_is_usable_or_refused(tmp_path: Path, content: object) -> None:
    read_or_refuse(folder_with(tmp_path, json.dumps(content).encode()))


@MANY
@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_of_a_field_is_usable_or_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    changed = {"format": 1, **asdict(SOUND), field: value}
    read_or_refuse(folder_with(tmp_path, json.dumps(changed).encode()))


@MANY
@given(content=st.binary(max_size=40))
def test_any_bytes_are_usable_or_refused(tmp_path: Path, content: bytes) -> None:
    read_or_refuse(folder_with(tmp_path, content))


def test_a_model_that_was_tuned_or_has_other_words_is_another_one(
    tiny_llm: Path, tmp_path: Path
) -> None:
    same = shutil.copytree(tiny_llm, tmp_path / "same")
    assert model_fingerprint(same) == model_fingerprint(tiny_llm)
    tuned = shutil.copytree(tiny_llm, tmp_path / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    save_file({name: t * 1.001 for name, t in tensors.items()}, tuned / "model.safetensors")
    other = ensure_tiny_llm(tmp_path / "other", TinyRecipe(n_corpus_lines=200))
    prints = {model_fingerprint(folder) for folder in (same, tuned, other)}
    assert len(prints) == 3
