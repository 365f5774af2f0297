"""README and pages lead somewhere, and the Makefile does what they say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_resolve(page: Path) -> None:
    links = re.findall(r"!?\[[^\]]*\]\(([^)#\s]+)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_readme_names_files_that_exist() -> None:
    quoted = re.findall(r"`([\w./*-]+/[\w.*-]*\w\.(?:py|txt))`", (ROOT / "README.md").read_text())
    assert quoted and [name for name in quoted if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("target", ["setup", "train", "test", "two-hosts", "bench", "lint", "lock"])
def test_make_knows_its_targets(target: str) -> None:
    result = subprocess.run(
        ["make", "--dry-run", target, "ARGS=--flag"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert ("--flag" in result.stdout) == (target in ("train", "test", "bench"))


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 and "make test" in script.read_text()
