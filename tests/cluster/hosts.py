"""Hosts on one machine: each with a network, processes, a name, a home, /tmp and an ssh server.

They share everything else: the file system but for these, cores and memory. Needs root. The
machine's own network is not touched, and nothing outlives the process that made the hosts: all of
it hangs on processes that end with that one.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

TOOLS = ("unshare", "nsenter", "setpriv", "ip", "ssh", "ssh-keygen", "rsync")
SSHD = Path("/usr/sbin/sshd")
ROOT = Path(__file__).resolve().parents[2]
HOME = Path(pwd.getpwuid(0).pw_dir)  # where ssh leads root
KEY = Path(".ssh/id_ed25519")  # below a host's home
START_LIMIT_S = 60.0
# Ends with the one who started it, and so does what it starts.
BOUND = ["setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child"]

# Arguments: name, folder of the host, then pairs of a path that stays visible and a path below it.
INIT = """
set -e
hostname "$1"
host=$2
shift 2
for path in "$@"; do
    for private in "$HOME" /tmp; do
        case $path/ in "$private"/*)
            below=$host$private${path#"$private"}
            mkdir -p "$below" && mount --bind "$path" "$below";;
        esac
    done
done
mkdir -p "$host$HOME" "$host/tmp"
mount --rbind "$host$HOME" "$HOME"
mount -t tmpfs none /run && mkdir /run/sshd
config=$host/sshd_config
mount --rbind "$host/tmp" /tmp
exec /usr/sbin/sshd -D -e -f "$HOME/.sshd_config"
"""
SSHD_CONFIG = """
HostKey {home}/.ssh_host_key
AuthorizedKeysFile {home}/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""


def why_not() -> str | None:
    """What this machine lacks for hosts; None if it can have some."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not SSHD.exists():
        missing.append("sshd (Debian: openssh-server)")
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "-n", "-m", "-p", "-u", "--fork", "ip", "link", "add", "probe", "type", "veth"],
        capture_output=True,
        text=True,
    )
    if tried.returncode != 0:
        return f"can't make namespaces: {tried.stderr.strip()}"
    return None


def visible_to_hosts(*more: Path) -> list[Path]:
    """This checkout and its Python, wherever they lie, and `more`."""
    return [ROOT, Path(sys.base_prefix), Path(sys.prefix).resolve(), *more]


@dataclass
class Host:
    """init: process id of its first process, whose end is the end of all that run there."""

    name: str
    address: str
    home: Path  # as seen from outside
    init: int

    def command(self, *words: str) -> list[str]:
        """What runs `words` there, in its home, with a login's variables."""
        inside = ["nsenter", "-t", str(self.init), "-n", "-m", "-p", "-u", f"--wdns={HOME}"]
        login = ["env", "-i", f"HOME={HOME}", "USER=root", "LANG=C.UTF-8", f"PATH={os.defpath}"]
        return [*inside, *login, *words]

    def run(self, script: str, limit_s: float = 120.0) -> str:
        """Output of a shell script there, as after a login. AssertionError if it fails."""
        done = subprocess.run(
            self.command("bash", "--login", "-c", script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """All that run there."""
        space = os.readlink(f"/proc/{self.init}/ns/pid")
        found = []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") == space:
                    found.append(process)
            except OSError:  # ended meanwhile
                continue
        return found


class Lan:
    """Hosts at one switch. Use as a context manager."""

    def __init__(self, folder: Path, visible: Sequence[Path]) -> None:
        """folder: of the hosts' homes. visible: folders that all hosts have in common, though
        they lie in a home or in /tmp.
        """
        self._folder = folder
        self._visible = visible
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Lan:
        self._switch = self._start("-n", "--fork", "sleep", "infinity")
        self._at_switch("ip", "link", "add", "lan", "type", "bridge")
        self._at_switch("ip", "link", "set", "lan", "up")
        self._key = self._folder / "key"
        self._make_key(self._key)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()

    def add(self, name: str, address: str) -> Host:
        """A host that answers to ssh, with one key for all; its home is empty but for that."""
        folder = self._folder / name
        home = folder / HOME.relative_to("/")
        self._furnish(home)
        words = ["bash", "-c", INIT, "init", name, str(folder), *map(str, self._visible)]
        init = self._start("-n", "-m", "-p", "-u", "--fork", "--mount-proc", *words)
        self._at_switch(
            *("ip", "link", "add", name, "type", "veth", "peer", "eth0", "netns", str(init))
        )
        self._at_switch("ip", "link", "set", name, "master", "lan", "up")
        host = Host(name, address, home, init)
        card = "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        for words in (
            ["ip", "link", "set", "lo", "up"],
            # A host that comes back has its old card, whose address the others remember.
            ["ip", "link", "set", "eth0", "address", card, "up"],
            ["ip", "address", "add", f"{address}/24", "dev", "eth0"],
            # Leads nowhere; from the route that it has, Ray learns which address is its own.
            ["ip", "route", "add", "default", "dev", "eth0"],
        ):
            subprocess.run(["nsenter", "-t", str(init), "-n", *words], check=True)
        self._wait_for_ssh(host)
        return host

    def lose(self, host: Host) -> None:
        """As when its power fails: from one moment to the next nobody hears of it."""
        self._at_switch("ip", "link", "delete", host.name)
        os.kill(host.init, signal.SIGKILL)

    def _furnish(self, home: Path) -> None:
        (home / ".ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copy(self._key, home / KEY)
        public = Path(f"{self._key}.pub").read_text()
        (home / ".ssh" / "authorized_keys").write_text(public)
        (home / ".sshd_config").write_text(SSHD_CONFIG.format(home=HOME))
        if not (home / ".ssh_host_key").exists():
            self._make_key(home / ".ssh_host_key")

    def _make_key(self, path: Path) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)

    def _start(self, *words: str) -> int:
        """Process id of what `unshare` starts with these words."""
        variables = os.environ | {"HOME": str(HOME)}
        process = subprocess.Popen([*BOUND, *words], stdin=subprocess.DEVNULL, env=variables)
        self._started.append(process)
        deadline = time.monotonic() + START_LIMIT_S
        while not (children := psutil.Process(process.pid).children()):
            assert process.poll() is None and time.monotonic() < deadline, words
            time.sleep(0.02)
        return children[0].pid

    def _at_switch(self, *words: str) -> None:
        subprocess.run(["nsenter", "-t", str(self._switch), "-n", *words], check=True)

    def _wait_for_ssh(self, host: Host) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        words = ["ssh", *options, "-i", str(HOME / KEY), host.address, "true"]
        while (tried := subprocess.run(host.command(*words), capture_output=True)).returncode:
            assert time.monotonic() < deadline, tried.stderr.decode()
            time.sleep(0.1)
