"""What is sent of a working directory, and what never is."""

import random
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.jobs.connection import JobError
from launch.jobs.package import packaged_files, write_package

ROOT = Path(__file__).resolve().parents[3]
MEBIBYTE = 2**20


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_runs_caches_environments_roms_and_secrets_stay_here(tmp_path):
    sent = ["launch/train.py", "requirements/cpu.txt", "notes/runs.md", "my/examples.json"]
    kept = ["runs/a/metrics.jsonl", ".git/config", ".venv/bin/python", ".env", "a/.netrc"]
    kept += ["launch/__pycache__/train.pyc", "games/mario.NES", "x.egg-info/PKG-INFO", "a/b.pem"]
    kept += [".mypy_cache/x", "story.z8"]
    fill(tmp_path / "work", *sent, *kept)
    (tmp_path / "elsewhere").write_text("not ours")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "work" / "home").symlink_to(tmp_path)
    archive = tmp_path / "package.zip"
    assert write_package(tmp_path / "work", archive, MEBIBYTE) == archive.stat().st_size
    with zipfile.ZipFile(archive) as package:
        assert sorted(package.namelist()) == sorted(sent)
        assert package.read("launch/train.py") == b"launch/train.py"


def test_this_checkout_can_run_from_what_is_sent():
    names = {path.relative_to(ROOT).as_posix() for path in packaged_files(ROOT)}
    assert {"launch/train.py", "launch/job.py", "launch/presets/mario.yaml"} <= names
    assert not [name for name in names if name.startswith(".") or name.endswith(".nes")]


@settings(max_examples=20)
@given(content=st.dictionaries(st.sampled_from("abcdefgh"), st.binary(max_size=99)))
def test_equal_content_is_sent_once(tmp_path_factory, content):
    """Names of packages are hashes of their bytes."""
    archives = []
    for names in (list(content), list(reversed(content))):  # in other order, at other times
        folder = tmp_path_factory.mktemp("work")
        for name in names:
            (folder / name).write_bytes(content[name])
        archives.append(tmp_path_factory.mktemp("out") / "package.zip")
        write_package(folder, archives[-1], MEBIBYTE)
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_too_large_a_directory_is_refused_and_its_largest_parts_named(tmp_path):
    fill(tmp_path / "work", "launch/train.py", "zzz.py")
    (tmp_path / "work" / "data").mkdir()
    (tmp_path / "work" / "data" / "frames.bin").write_bytes(random.Random(0).randbytes(3 * 2**20))
    with pytest.raises(JobError, match=r"more than 1 MiB.*data/frames\.bin \(3\.0 MiB\).*runs/"):
        write_package(tmp_path / "work", tmp_path / "package.zip", MEBIBYTE)
