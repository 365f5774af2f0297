"""The installer's decisions, and that it trusts nothing but a complete install."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import setup_env
from launch.setup_env import SetupError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose locks name one package that no index is needed to fail on."""
    (tmp_path / "requirements").mkdir()
    for lock in setup_env.LOCKS.values():
        (tmp_path / lock).write_text(
            "# by hand\nghost @ file:///nowhere/ghost-1-py3-none-any.whl\n"
        )
    return tmp_path


@pytest.mark.parametrize(
    "wanted, driver, device",
    [("", False, "cpu"), ("", True, "cuda"), ("cpu", True, "cpu"), ("cuda", False, "cuda")],
)
def test_driver_decides_unless_overridden(wanted: str, driver: bool, device: str) -> None:
    environ = {"WARPZONE_DEVICE": wanted} if wanted else {}
    assert setup_env.choose_device(environ, lambda: driver)[0] == device


@pytest.mark.parametrize("wanted", ["gpu", "CPU", "cuda:0", "auto"])
def test_unknown_device_is_refused(wanted: str) -> None:
    with pytest.raises(SetupError, match="Set it to cpu or cuda"):
        setup_env.choose_device({"WARPZONE_DEVICE": wanted}, lambda: True)


def test_finds_python311_beside_another_python() -> None:
    found = setup_env.find_python((3, 13), "/py313", lambda name: f"/bin/{name}", lambda _: (3, 11))
    assert found == "/bin/python3.11"
    assert setup_env.find_python((3, 11), "/py311", lambda _: None) == "/py311"


@pytest.mark.parametrize("version", [None, (3, 12)])
def test_missing_python_names_what_was_found(version: tuple[int, int] | None) -> None:
    which = (lambda name: None) if version is None else (lambda name: "/shim")
    with pytest.raises(SetupError, match=r"needed, found 3\.13 \(/py313\)"):
        setup_env.find_python((3, 13), "/py313", which, lambda _: version)


def test_probe_sees_a_stale_shim(tmp_path: Path) -> None:
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\necho 'version not installed' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert setup_env.probe_version(str(shim)) is None
    assert setup_env.probe_version(str(tmp_path / "none")) is None
    assert setup_env.probe_version(sys.executable) == sys.version_info[:2]


def test_missing_compiler_says_what_to_install() -> None:
    with pytest.raises(SetupError, match="apt install g"):
        setup_env.check_machine(lambda name: None)


def test_stamp_follows_lock_device_python_and_place(checkout: Path, tmp_path: Path) -> None:
    venv = checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    stamp = setup_env.wanted_stamp(checkout, "cpu", "3.11")
    assert not setup_env.is_ready(venv, stamp)
    setup_env.write_stamp(venv, stamp)
    assert not setup_env.is_ready(venv, stamp), "no interpreter behind the stamp"
    (venv / "bin" / "python").symlink_to(sys.executable)
    assert setup_env.is_ready(venv, stamp)
    assert not setup_env.is_ready(venv, setup_env.wanted_stamp(checkout, "cuda", "3.11"))
    assert not setup_env.is_ready(venv, {**stamp, "python": "3.12"})
    assert not setup_env.is_ready(venv, {**stamp, "root": "/moved"})
    (checkout / "requirements/cpu.txt").write_text("other==1\n")
    assert not setup_env.is_ready(venv, setup_env.wanted_stamp(checkout, "cpu", "3.11"))
    (venv / setup_env.STAMP_NAME).write_text('{"device": "cp')
    assert not setup_env.is_ready(venv, stamp), "half-written stamp"


def test_failed_install_leaves_no_stamp_and_names_the_log(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real venv, real pip; the package does not exist."""
    with pytest.raises(SetupError, match=r"could not install requirements/gpu\.txt") as failure:
        setup_env.setup(checkout, {"WARPZONE_DEVICE": "cuda"})
    log = checkout / ".venv" / setup_env.LOG_NAME
    assert str(log) in str(failure.value) and "ghost" in log.read_text()
    assert not (checkout / ".venv" / setup_env.STAMP_NAME).exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed and all(line.startswith("[setup] ") for line in printed)


def test_interrupted_install_is_repeated(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def interrupted(root: Path, venv: Path, device: str, python: str) -> None:
        calls.append(device)
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        if len(calls) == 1:
            raise KeyboardInterrupt
        (venv / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(setup_env, "install", interrupted)
    environ = {"WARPZONE_DEVICE": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        setup_env.setup(checkout, environ)
    setup_env.setup(checkout, environ)
    setup_env.setup(checkout, environ)
    assert calls == ["cpu", "cpu"], "the third call finds a complete install"


def test_torch_falls_back_to_its_own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def fake_run(command: list[str], log: Path, n_expected: int = 0) -> int:
        commands.append(command)
        return 1 if len(commands) == 1 else 0

    monkeypatch.setattr(setup_env, "run_logged", fake_run)
    setup_env.install_torch_cpu(["pip"], ["tqdm==1", "torch==2.13.0+cpu"], tmp_path / "log")
    assert commands[0] == ["pip", "torch==2.13.0+cpu"]
    assert commands[1] == ["pip", "--index-url", setup_env.TORCH_CPU_INDEX, "torch==2.13.0+cpu"]


def test_bad_device_ends_with_code_2() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "launch/setup_env.py")],
        env={**os.environ, "WARPZONE_DEVICE": "tpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("[setup] error: WARPZONE_DEVICE='tpu'")
    assert "Traceback" not in result.stderr


def test_second_call_takes_under_two_seconds() -> None:
    device, _ = setup_env.choose_device(os.environ)
    if not setup_env.is_ready(ROOT / ".venv", setup_env.wanted_stamp(ROOT, device, "3.11")):
        pytest.skip("this checkout was not set up by make setup")
    started = time.monotonic()
    command = [str(ROOT / ".venv/bin/python"), str(ROOT / "launch/setup_env.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
    assert time.monotonic() - started < 2.0


def test_locks_are_pinned_and_leave_out_what_breaks() -> None:
    """Beside a CPU torch these builds break `import transformers`; gym and pyglet are unused."""
    banned = {"torchvision", "torchaudio", "torchcodec", "triton", "gym", "pyglet"}
    for device, lock in setup_env.LOCKS.items():
        text = (ROOT / lock).read_text()
        pins = setup_env.read_pins(ROOT / lock)
        names = {pin.split("==")[0] for pin in pins}
        assert all(pin.count("==") == 1 for pin in pins)
        assert not names & (banned if device == "cpu" else {"gym", "pyglet"})
        assert "file:" not in text and "--find-links" not in text, "a machine's own paths"
    assert "torch==2.13.0+cpu" in setup_env.read_pins(ROOT / "requirements/cpu.txt")
    assert "vllm==0.32.0" in setup_env.read_pins(ROOT / "requirements/gpu.txt")


def test_unknown_extra_is_refused() -> None:
    assert setup_env.choose_extras({"EXTRAS": "text, text"}) == ["text"]
    assert setup_env.choose_extras({}) == []
    with pytest.raises(SetupError, match="EXTRAS='txt' is not an extra; there are: text"):
        setup_env.choose_extras({"EXTRAS": "text txt"})


@pytest.mark.parametrize("device", setup_env.DEVICES)
def test_an_extra_leaves_the_versions_of_the_lock(device: str) -> None:
    added = setup_env.extra_pins(ROOT, device, "text")
    names = {pin.split("==")[0] for pin in added}
    assert {"textworld", "jericho", "spacy"} <= names
    assert not names & {"numpy", "torch", "pydantic", "setuptools"}
    assert all(pin.count("==") == 1 for pin in added)


def test_an_extra_is_installed_once_and_again_after_a_change(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv, lock = checkout / ".venv", checkout / setup_env.EXTRAS["text"]
    venv.mkdir()
    lock.write_text("ghost==1\nword==2\n")
    (checkout / setup_env.LOCKS["cpu"]).write_text("ghost==1\n")
    commands: list[list[str]] = []

    def fake_run(command: list[str], log: Path, n_expected: int = 0) -> int:
        commands.append(command)
        return len(commands) == 1

    monkeypatch.setattr(setup_env, "run_logged", fake_run)
    (venv / setup_env.LOG_NAME).write_text("no such package")
    with pytest.raises(SetupError, match=r"could not install requirements/text\.txt"):
        setup_env.add_extra(checkout, venv, "cpu", "text")
    for _ in range(2):
        setup_env.add_extra(checkout, venv, "cpu", "text")
    assert len(commands) == 2 and commands[1][-1] == "word==2" and "ghost==1" not in commands[1]
    lock.write_text("ghost==1\nword==3\n")
    setup_env.add_extra(checkout, venv, "cpu", "text")
    assert len(commands) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PIP = """
import sys, time
for line in sys.argv[1:]:
    print(line, flush=True)
    time.sleep(0.4)
"""


def watch(lines: list[str], n_expected: int, log: Path) -> int:
    """A program that prints `lines` as pip does, watched as pip is."""
    return setup_env.run_logged([sys.executable, "-c", PIP, *lines], log, n_expected)


def test_a_long_install_says_how_far_it_is(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(setup_env, "LINE_INTERVAL_S", 0.1)
    lines = ["Collecting a==1", "  Downloading a-1-py3-none-any.whl (3 kB)", "Collecting b==2"]
    assert watch([*lines, "Installing collected packages: a, b"], 2, tmp_path / "log") == 0
    said = capsys.readouterr().out
    told = ["fetched 1 of 2", "fetched 0 of 2 packages, downloading a (3 kB)", "unpacking"]
    assert all(words in said for words in told)
    assert said.index("downloading a") < said.index("fetched 2 of 2") < said.index("unpacking")
    assert all(line.startswith("[setup]   ") for line in said.splitlines())


def test_one_large_package_shows_that_it_is_on_its_way(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(setup_env, "TERMINAL_INTERVAL_S", 0.1)
    monkeypatch.setattr(sys, "stdout", Terminal())
    wheel = "https://example.org/cpu/torch-2.9.0%2Bcpu-cp311-linux_x86_64.whl (184.5 MB)"
    lines = ["Collecting torch==2.9.0+cpu", f"  Downloading {wheel}"]
    pip = [sys.executable, "-c", PIP, *lines]
    setup_env.install_torch_cpu(pip, ["torch==2.9.0+cpu"], tmp_path / "log")
    shown = sys.stdout.getvalue()
    bar = f"[{'-' * setup_env.BAR_WIDTH}] fetched 0 of 1 packages, downloading torch (184.5 MB)"
    assert f"\r[setup]   {bar} (" in shown
    assert shown.endswith("\r\x1b[K"), "the bar is gone afterwards"
