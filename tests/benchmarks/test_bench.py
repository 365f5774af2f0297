"""`make bench`: what it runs, and that it writes its own part of the page and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are scripts, not a package

from benchmarks import bench
from benchmarks.bench import BEGIN, BENCHMARKS, END, PageError, Short, refreshed

ROOT = Path(__file__).resolve().parents[2]
# Scripts that are no benchmark: parts of others run in another system's environment, an installer.
NOT_BENCHMARKS = {"bench", "lightzero_search", "torchrl_sampler", "peers"}
TEXT = st.text().filter(lambda text: BEGIN not in text and END not in text)


def test_every_benchmark_has_a_short_form() -> None:
    scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()}
    assert {b.name for b in BENCHMARKS} == scripts - NOT_BENCHMARKS


@given(TEXT, TEXT, st.dictionaries(st.sampled_from(["tree", "overlap", "gone"]), st.just("new")))
def test_all_else_stays_as_it_is(before, after, entries) -> None:
    page = f"{before}{BEGIN}\nold\n\n### overlap\n\nold\n\n### tree\n\nold\n{END}{after}"
    found = refreshed(page, entries)
    assert found.startswith(before + BEGIN) and found.endswith(END + after)
    assert refreshed(found, {}) == found
    for name in ("overlap", "tree"):
        assert f"### {name}\n\n{entries.get(name, 'old')}\n" in found
    assert ("### gone" in found) == ("gone" in entries)


@given(TEXT)
def test_a_page_without_markers_gets_them_at_its_end(page) -> None:
    found = refreshed(page, {"tree": "words"})
    assert found.startswith(page.rstrip("\n")) and found.rstrip().endswith(END)
    assert refreshed(found, {}) == found


@pytest.mark.parametrize("page", [BEGIN, END, BEGIN + BEGIN + END + END, END + BEGIN])
def test_damaged_markers_are_refused_before_anything_runs(page, tmp_path, capsys) -> None:
    with pytest.raises(PageError):
        refreshed(page, {})
    path = tmp_path / "page.md"
    path.write_text(page)
    assert bench.main(["--page", str(path), "--only", "env_speed"]) == 2
    assert "make bench" in capsys.readouterr().err
    assert path.read_text() == page


def test_a_real_benchmark_becomes_an_entry_with_machine_commit_and_date(tmp_path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Benchmarks\n\n| by hand | 1 |\n")
    assert bench.main(["--page", str(path), "--only", "checkpoint_cost"]) == 0
    page = path.read_text()
    assert page.startswith("# Benchmarks\n\n| by hand | 1 |\n\n" + BEGIN)
    entry = page.partition("### checkpoint_cost")[2]
    command = "`python benchmarks/checkpoint_cost.py --positions"
    for word in (command, "cores", "commit ", "UTC", "~~~text", "| first |"):
        assert word in entry
    assert [p.name for p in tmp_path.iterdir()] == ["page.md"]


def test_one_that_fails_or_hangs_leaves_the_old_entry(capsys) -> None:
    assert bench.measured(Short("peers", "--nonsense")) is None
    assert "peers: exit code 2" in capsys.readouterr().out
    assert bench.measured(Short("checkpoint_cost"), limit_s=0.2) is None
    assert "took more than 0 s" in capsys.readouterr().out
