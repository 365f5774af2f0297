#!/usr/bin/env python3
"""Prepare `.venv` from the locked requirements: python3.11 launch/setup_env.py

Uses the standard library only, so that it runs before anything is installed. A stamp written after
a complete install makes the next call return at once; anything else (no stamp, other lock, other
device, moved checkout) installs from scratch, because a half-finished install can't be told from
a whole one. Must stay readable for Python 3.8, which has to get as far as the "wrong Python" error.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Mapping, Sequence  # noqa: UP035

ROOT = Path(__file__).resolve().parent.parent
PYTHON_VERSION = (3, 11)
DEVICES = ("cpu", "cuda")
LOCKS = {"cpu": "requirements/cpu.txt", "cuda": "requirements/gpu.txt"}
# On top of either, by EXTRAS=text and the like.
EXTRAS = {"text": "requirements/text.txt", "trackers": "requirements/trackers.txt"}
# Where a plain PyPI machine finds the CPU build of torch; asked only if the user's index has none.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP_NAME = "warpzone-setup.json"
LOG_NAME = "warpzone-setup.log"
TERMINAL_INTERVAL_S = 0.5
LINE_INTERVAL_S = 30.0  # where there is no terminal
BAR_WIDTH = 30


class SetupError(Exception):
    """The machine can't be set up; the text says what was found and what to do."""


def say(message: str) -> None:
    sys.stdout.write(f"[setup] {message}\n")
    sys.stdout.flush()


def has_nvidia_driver() -> bool:
    """True if the NVIDIA kernel driver or its user library is there; starts no process."""
    if any(Path(p).exists() for p in ("/proc/driver/nvidia/version", "/dev/nvidiactl")):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")  # WSL has the library without the two files
    except OSError:
        return False
    return True


def choose_device(
    environ: Mapping[str, str], driver: Callable[[], bool] = has_nvidia_driver
) -> tuple[str, str]:
    """The device to install for and the reason, from WARPZONE_DEVICE or else the driver."""
    wanted = environ.get("WARPZONE_DEVICE", "").strip()
    if wanted:
        if wanted not in DEVICES:
            raise SetupError(
                f"WARPZONE_DEVICE={wanted!r} is not a device.\n"
                "Set it to cpu or cuda, or unset it to let the NVIDIA driver decide."
            )
        return wanted, "WARPZONE_DEVICE says so"
    if driver():
        return "cuda", "an NVIDIA driver was found"
    return "cpu", "no NVIDIA driver was found"


def choose_extras(environ: Mapping[str, str]) -> list[str]:
    """The extras named in EXTRAS, with commas or spaces between them."""
    wanted = environ.get("EXTRAS", "").replace(",", " ").split()
    for extra in wanted:
        if extra not in EXTRAS:
            raise SetupError(
                f"EXTRAS={extra!r} is not an extra; there are: {', '.join(EXTRAS)}.\n"
                "Name one of these, or unset it to install none."
            )
    return sorted(set(wanted))


def probe_version(executable: str) -> tuple[int, int] | None:
    """(major, minor) of a Python executable; None if it doesn't run (a stale shim, say)."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        result = subprocess.run(
            [executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
        )
        major, minor = result.stdout.split()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return int(major), int(minor)


def find_python(
    running: tuple[int, int],
    executable: str,
    which: Callable[[str], str | None] = shutil.which,
    probe: Callable[[str], tuple[int, int] | None] = probe_version,
) -> str:
    """The Python 3.11 to build the environment with: this one, or `python3.11` from PATH."""
    if running == PYTHON_VERSION:
        return executable
    candidate = which("python3.11")
    if candidate is not None and probe(candidate) == PYTHON_VERSION:
        return candidate
    raise SetupError(
        f"Python 3.11 is needed, found {running[0]}.{running[1]} ({executable}) and no working "
        "python3.11 on PATH.\n"
        "Install it (Debian/Ubuntu: apt install python3.11 python3.11-venv; pyenv install 3.11;\n"
        "uv python install 3.11) and run make again, or name it: make setup PYTHON=/path/to/python"
    )


def check_machine(which: Callable[[str], str | None] = shutil.which) -> None:
    """Refuse early what would fail minutes later inside pip."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SetupError(
            f"the locked requirements are for Linux on x86_64, this is {sys.platform} on "
            f"{platform.machine()}.\nUse a Linux machine or container."
        )
    if which("g++") is None:  # nes-py's build asks for exactly this name
        raise SetupError(
            "no C++ compiler: `g++` is not on PATH, and nes-py (the emulator) compiles C++.\n"
            "Install one (Debian/Ubuntu: apt install g++; Fedora: dnf install gcc-c++)."
        )


def wanted_stamp(root: Path, device: str, python: str) -> dict[str, str]:
    """What a complete install for this checkout looks like."""
    lock = root / LOCKS[device]
    if not lock.is_file():
        raise SetupError(f"{lock} is missing: the checkout is not complete.")
    return {
        "device": device,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest(),
        "python": python,
        "root": str(root),  # scripts in .venv/bin hold absolute paths
    }


def is_ready(venv: Path, stamp: Mapping[str, str]) -> bool:
    """True if `venv` holds a complete install that matches `stamp`."""
    try:
        found = json.loads((venv / STAMP_NAME).read_text())
    except (OSError, ValueError):
        return False
    return found == dict(stamp) and os.access(venv / "bin" / "python", os.X_OK)


def write_stamp(venv: Path, stamp: Mapping[str, str]) -> None:
    temporary = venv / f"{STAMP_NAME}.tmp"
    temporary.write_text(json.dumps(dict(stamp), indent=1) + "\n")
    temporary.replace(venv / STAMP_NAME)


def _progress(log: Path, start_offset: int, n_expected: int) -> tuple[int, str]:
    """Packages fetched, and what is going on in words."""
    text = log.read_text(errors="replace")[start_offset:]
    if "Installing collected packages" in text:
        return n_expected, "unpacking"
    lines = [line for line in text.splitlines() if line.strip()]
    n_begun = sum(line.startswith(("Collecting ", "Processing ", "Requirement ")) for line in lines)
    newest = lines[-1].split() if lines else []
    if newest[:1] != ["Downloading"]:
        n_fetched = min(n_begun, n_expected)
        return n_fetched, f"fetched {n_fetched} of {n_expected} packages"
    # The last one begun is on its way: a file's name and, in brackets, its size.
    n_fetched = min(max(0, n_begun - 1), n_expected)
    package = newest[1].rpartition("/")[2].split("-")[0]
    size = " ".join(newest[2:])
    return n_fetched, f"fetched {n_fetched} of {n_expected} packages, downloading {package} {size}"


def _show_progress(n_done: int, n_expected: int, state: str, seconds: float) -> None:
    """A bar that is drawn over itself on a terminal, a line elsewhere; rich is not there yet."""
    if not sys.stdout.isatty():
        say(f"  {state} ({seconds:.0f} s)")
        return
    filled = BAR_WIDTH * n_done // n_expected
    bar = "#" * filled + "-" * (BAR_WIDTH - filled)
    sys.stdout.write(f"\r[setup]   [{bar}] {state} ({seconds:.0f} s)\x1b[K")
    sys.stdout.flush()


def _clear_progress() -> None:
    if sys.stdout.isatty():
        sys.stdout.write("\r\x1b[K")
        sys.stdout.flush()


def run_logged(command: Sequence[str], log: Path, n_expected: int = 0) -> int:
    """Run `command` with its output in `log`, saying now and then how far it is."""
    with log.open("a") as stream:
        stream.write(f"$ {' '.join(command)}\n")
        stream.flush()
        start_offset = len(log.read_text(errors="replace"))
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        started = said = time.monotonic()
        interval_s = TERMINAL_INTERVAL_S if sys.stdout.isatty() else LINE_INTERVAL_S
        try:
            while process.poll() is None:
                time.sleep(0.1)
                now = time.monotonic()
                if n_expected and now - said >= interval_s:
                    n_done, state = _progress(log, start_offset, n_expected)
                    _show_progress(n_done, n_expected, state, now - started)
                    said = now
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            if n_expected:
                _clear_progress()
    return process.returncode


def pip_failed(what: str, log: Path) -> SetupError:
    tail = [line[:160] for line in log.read_text(errors="replace").splitlines()[-8:]]
    return SetupError(
        f"pip could not install {what}; the end of its output:\n  "
        + "\n  ".join(tail)
        + f"\nThe whole output is in {log}\n"
        "Without network access, set pip's index-url or find-links to where the packages are."
    )


def read_pins(lock: Path) -> list[str]:
    """The `name==version` pins of a lock file, comments dropped."""
    lines = (line.split("#")[0].strip() for line in lock.read_text().splitlines())
    return [line for line in lines if line]


def install_torch_cpu(pip: list[str], pins: Sequence[str], log: Path) -> None:
    """torch from the user's own index or wheels, else from PyTorch's index of CPU builds."""
    pin = next(pin for pin in pins if pin.startswith("torch=="))
    say(f"{pin} ...")
    if run_logged([*pip, pin], log, 1) == 0:
        return
    say(f"  not in the configured index; from {TORCH_CPU_INDEX} ...")
    if run_logged([*pip, "--index-url", TORCH_CPU_INDEX, pin], log, 1) != 0:
        raise pip_failed(pin, log)


def install(root: Path, venv: Path, device: str, python: str) -> None:
    """Build `venv` from scratch; dependencies are not resolved, the lock is complete."""
    say(f"creating {venv} with {python}")
    shutil.rmtree(venv, ignore_errors=True)
    created = subprocess.run([python, "-m", "venv", str(venv)], capture_output=True, text=True)
    if created.returncode != 0:
        raise SetupError(
            f"{python} -m venv failed:\n{(created.stderr or created.stdout).strip()[-800:]}\n"
            "On Debian/Ubuntu: apt install python3.11-venv"
        )
    log = venv / LOG_NAME
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--no-input"]
    pip += ["--disable-pip-version-check"]
    lock = root / LOCKS[device]
    pins = read_pins(lock)
    if device == "cpu":
        install_torch_cpu(pip, pins, log)
    say(f"{len(pins)} packages from {LOCKS[device]} (a few minutes the first time) ...")
    if run_logged([*pip, "-r", str(lock)], log, len(pins)) != 0:
        raise pip_failed(LOCKS[device], log)
    say("this project ...")
    if run_logged([*pip, "--no-build-isolation", "-e", str(root)], log) != 0:
        raise pip_failed("this project", log)


def extra_pins(root: Path, device: str, extra: str) -> list[str]:
    """What an extra adds to the device's lock, whose versions stay."""
    held = {pin.split("==")[0] for pin in read_pins(root / LOCKS[device])}
    return [pin for pin in read_pins(root / EXTRAS[extra]) if pin.split("==")[0] not in held]


def add_extra(root: Path, venv: Path, device: str, extra: str) -> None:
    """Install an extra into a complete `venv`, unless it is there."""
    pins = extra_pins(root, device, extra)
    stamp = venv / f"warpzone-extra-{extra}.txt"  # goes with the environment when that is rebuilt
    content = "\n".join(pins) + "\n"
    if stamp.is_file() and stamp.read_text() == content:
        return
    say(f"{len(pins)} packages for EXTRAS={extra} ...")
    log = venv / LOG_NAME
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--no-input"]
    if run_logged([*pip, "--disable-pip-version-check", *pins], log, len(pins)) != 0:
        raise pip_failed(EXTRAS[extra], log)
    stamp.write_text(content)


def setup(root: Path, environ: Mapping[str, str]) -> None:
    extras = choose_extras(environ)
    device = set_up_base(root, environ)
    for extra in extras:
        add_extra(root, root / ".venv", device, extra)


def set_up_base(root: Path, environ: Mapping[str, str]) -> str:
    """Everything but the extras; returns the device it is for."""
    device, reason = choose_device(environ)
    python = find_python(sys.version_info[:2], sys.executable)
    venv = root / ".venv"
    stamp = wanted_stamp(root, device, ".".join(map(str, PYTHON_VERSION)))
    if is_ready(venv, stamp):
        return device
    check_machine()
    with Path(__file__).open() as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is running; waiting for it")
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        if is_ready(venv, stamp):
            return device
        started = time.monotonic()
        say(f"installing for {device}: {reason}")
        install(root, venv, device, python)
        write_stamp(venv, stamp)
        say(f"ready in {time.monotonic() - started:.0f} s")
    return device


def main() -> int:
    try:
        setup(ROOT, os.environ)
    except SetupError as error:
        sys.stderr.write(f"[setup] error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("[setup] interrupted; the next call starts again\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
