"""`make bench`: what it runs, and that it writes its own part of the page and nothing else."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are scripts, not a package
# and some name their neighbours as scripts do
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from benchmarks import bench
from benchmarks.bench import BEGIN, BENCHMARKS, END, PageError, Short, refreshed

ROOT = Path(__file__).resolve().parents[2]
# Scripts that are no benchmark: parts of others run in another system's environment, an installer.
NOT_BENCHMARKS = {"bench", "lightzero_search", "torchrl_sampler", "peers"}
TEXT = st.text().filter(lambda text: BEGIN not in text and END not in text)


def test_every_benchmark_has_a_short_form() -> None:
    scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()}
    assert {b.name for b in BENCHMARKS} == scripts - NOT_BENCHMARKS


@pytest.mark.parametrize("short", BENCHMARKS, ids=lambda short: short.name)
def test_a_benchmark_takes_the_words_of_its_short_form(short, tmp_path, monkeypatch) -> None:
    script = importlib.import_module(f"benchmarks.{short.name}")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / bench.OUTPUT / "overlap-runs" / "4x16-overlapped-0"  # mario_progress reads it
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    assert hasattr(script, "parse_options") or not short.words
    if short.words:
        script.parse_options(short.words.split())  # exits with code 2 if it refuses them


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


# Stands for a benchmark whose run has a session of its own, as those of launch/train.py have.
STUB = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
open("pid", "w").write(f"{child.pid}\\n")
time.sleep(float(sys.argv[1]))
sys.exit(3)
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], psutil.Process]:
    """Written as benchmarks/stub.py; answers with what it started, once that is there."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "stub.py").write_text(STUB)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "LOOK_S", 0.1)

    def started() -> psutil.Process:
        path = tmp_path / "pid"
        deadline = time.monotonic() + 60.0
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return psutil.Process(int(path.read_text()))

    return started


def is_gone(process: psutil.Process) -> bool:
    _, alive = psutil.wait_procs([process], timeout=20.0)
    return not alive or alive[0].status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("sleeps", "limit_s"), [("1000", 6.0), ("1.5", 60.0)])
def test_what_a_benchmark_started_ends_at_the_limit_and_after_an_error(
    stub, sleeps, limit_s, capsys
) -> None:
    found: list[psutil.Process] = []
    watcher = threading.Thread(target=lambda: found.append(stub()))
    watcher.start()
    assert bench.measured(Short("stub", sleeps), limit_s=limit_s) is None
    watcher.join()
    assert ("exit code 3" in capsys.readouterr().out) == (sleeps == "1.5")
    assert is_gone(found[0])


def test_what_a_benchmark_started_ends_by_ctrl_c(stub, tmp_path, monkeypatch, capsys) -> None:
    found: list[psutil.Process] = []

    def interrupt() -> None:
        found.append(stub())
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(bench, "BENCHMARKS", (Short("stub", "1000"),))
    page = tmp_path / "page.md"
    page.write_text("")
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a run's stays in its process
    try:
        threading.Thread(target=interrupt).start()
        assert bench.main(["--page", str(page)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted" in capsys.readouterr().out and page.read_text() == ""
    assert is_gone(found[0])
