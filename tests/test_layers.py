"""The arrows between packages, read from the import statements of every source file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Package -> the packages of ours it may import, besides itself.
ALLOWED = {
    "cache": set(),
    "replay_service": set(),
    "learner": {"cache", "replay_service"},
    "actors": {"cache", "replay_service", "learner"},
    "launch": {"cache", "replay_service", "learner", "actors"},
}
BANNED_STEMS = {"utils", "util", "common", "helpers", "helper", "misc"}
SOURCES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))
MAX_MODULE_LINES = 350


def imported_modules(path: Path) -> set[str]:
    """Absolute dotted names of everything `path` imports, wherever in the file."""
    names: set[str] = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names.add(".".join([*base, *([node.module] if node.module else [])]))
    return names


def top_level(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = top_level(imported_modules(path)) & set(ALLOWED)
    wrong = ours - ALLOWED[package] - {package}
    assert not wrong, f"{package} may not import {sorted(wrong)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_stays_in_launch_and_actor_shells(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] == "launch" or path.name.endswith("_actor.py"):
        return
    assert "ray" not in top_level(imported_modules(path)), "move the Ray call to a *_actor.py shell"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_env_actors_and_learner_never_load_vllm(path: Path) -> None:
    """vLLM takes seconds and hundreds of MB to import; only its own backend may."""
    if path.name.startswith("vllm_") or path.name == "prior_engine_actor.py":
        return
    assert "vllm" not in top_level(imported_modules(path))


def test_no_drawer_modules() -> None:
    drawers = [p for p in SOURCES if p.stem in BANNED_STEMS]
    assert not drawers, f"name these by what they hold: {drawers}"


def test_modules_stay_readable() -> None:
    lengths = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in SOURCES}
    too_long = {str(p): n for p, n in lengths.items() if n > MAX_MODULE_LINES}
    assert not too_long, f"split by noun: {too_long}"


def test_tests_cannot_shadow_packages() -> None:
    """With `__init__.py` files there, tests/cache would be importable as `cache`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_setup_lists_every_package() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for package in ALLOWED
        for p in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == found


def test_installer_needs_only_the_standard_library() -> None:
    import sys

    names = top_level(imported_modules(ROOT / "launch" / "setup_env.py"))
    assert names <= set(sys.stdlib_module_names)
