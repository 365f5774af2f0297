"""The tiny model's command, and which folder a prior.model setting means."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.make_tiny_llm import main
from learner.language.model_folder import resolve_model, validate_model
from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm

SMALL = TinyRecipe(n_corpus_lines=30, vocab_size=300)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_recipe_gives_one_model(tmp_path: Path) -> None:
    first, second = (ensure_tiny_llm(tmp_path / name, SMALL) for name in ("first", "second"))
    assert contents(first) == contents(second)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "second"]  # nothing half-made
    other = ensure_tiny_llm(tmp_path / "other", TinyRecipe(1, n_corpus_lines=30, vocab_size=300))
    assert contents(other)["model.safetensors"] != contents(first)["model.safetensors"]
    assert TinyRecipe(seed=1).fingerprint() != TinyRecipe().fingerprint()


def test_a_finished_folder_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "warpzone" / f"tiny-llm-{TinyRecipe().fingerprint()}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    main([])
    assert capsys.readouterr().out.strip() == str(folder)
    assert contents(folder) == {"config.json": b"{}"}
    assert resolve_model(None) == folder


def test_the_command_leaves_other_folders_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path)])
    assert stop.value.code == 2
    assert "name a new folder" in capsys.readouterr().err
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "~/nowhere/either", "a/b/c"])
def test_a_missing_folder_is_named(model: str) -> None:
    with pytest.raises(ValueError, match=f"prior.model '{model}' is not a folder; give"):
        validate_model(model)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json and no tokenizer\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("model", ["two words", "owner/", "-flag"])
def test_nonsense_is_no_hub_name(model: str) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a Hugging Face name"):
        validate_model(model)


def test_good_settings_pass(tiny_llm: Path) -> None:
    validate_model(None)
    validate_model("Qwen/Qwen2.5-0.5B-Instruct")
    assert resolve_model(str(tiny_llm)) == tiny_llm
