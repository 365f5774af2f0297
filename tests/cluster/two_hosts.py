"""`ray up` on two hosts, a run over both, one host lost and back, the run goes on, `ray down`.

    make two-hosts                  # needs root, openssh-server and rsync; minutes
    python tests/cluster/two_hosts.py

The hosts are namespaces of this machine (hosts.py), so they share its file system and cores. What
is done on them is launch/cluster/local.yaml with its blanks filled in, and the commands of
docs/cluster.md. Prints one line a step; exit code 0 if all came as it should, 1 if not, 3 where no
hosts can be made.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.real_run import EXIT_RESUMABLE, LIMIT_S, ROOT, RealRun
from tests.cluster.hosts import HOME, KEY, Host, Lan, visible_to_hosts, why_not

FIRST, SECOND = "192.168.1.10", "192.168.1.11"
CHECKOUT = "~/warpzone-cluster"
BIN = f"{CHECKOUT}/.venv/bin"
RAY = f"RAY_AUTH_MODE=token {BIN}/ray"
MAKE_TOKEN = (
    "mkdir -p ~/.ray && (umask 077; "
    f"{BIN}/python -c 'import secrets; print(secrets.token_hex(32))' > ~/.ray/auth_token)"
)
# Cores that Ray may give away: the first has room for all but one env actor, the second for that.
FILLED = {
    "FILL-IN-FIRST": FIRST,
    "FILL-IN-SECOND": SECOND,
    "FILL-IN-USER": "root",
    "ssh_private_key: ~/.ssh/warpzone ": f"ssh_private_key: ~/{KEY} ",
    "ray start --head ": "ray start --head --num-cpus 3 ",
    "ray start --address=$RAY_HEAD_IP:6379 ": "ray start --address=$RAY_HEAD_IP:6379 --num-cpus 1 ",
}
# As the file says for machines that see one prepared checkout at the same path.
LEFT_OUT = ("warpzone.tar.gz", "make setup")
SMALL = shlex.split(
    """--preset cartpole --device cpu --simulations 4 --num-actors 2
    --acting.segment-length 10 --acting.collect-steps 8 --replay.min-positions 40
    --learner.batch-size 16 --limiter.samples-per-insert 8
    --evaluation.every-env-steps 1000000 --control.log-period-s 1
    --control.checkpoint-every-env-steps 300 --total-env-steps 100000000"""
)


class RunOnHost(RealRun):
    """Its driver is a process of a host; what it writes is read from outside."""

    def __init__(self, host: Host, folder: Path) -> None:
        script = f"{HOME}/warpzone-cluster/launch/train.py"
        super().__init__(folder, "--address", "auto", settings=SMALL, script=script)
        self._host = host

    def start(self, *changes: str) -> None:
        words = [sys.executable, *self._command, *changes]
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                self._host.command("env", f"PYTHONPATH={HOME}/warpzone-cluster", *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> int:
        """Ctrl-C to the driver, of which the process here is only the way in."""
        assert self.process is not None
        (driver,) = psutil.Process(self.process.pid).children()
        driver.send_signal(signal.SIGINT)
        return self.process.wait(timeout=LIMIT_S)


def main() -> int:
    if (lacking := why_not()) is not None:
        sys.stderr.write(f"[hosts] not run: {lacking}\n")
        return 3
    with tempfile.TemporaryDirectory(prefix="wz-hosts-", dir="/tmp") as name:
        folder = Path(name)
        with Lan(folder, visible_to_hosts(folder)) as lan:
            first, second = lan.add("first", FIRST), lan.add("second", SECOND)
            try:
                two_hosts(lan, first, second, folder / "run")
            except (AssertionError, subprocess.TimeoutExpired) as error:
                sys.stderr.write(f"[hosts] failed: {error}\n{_last_words(first)}\n")
                return 1
    return 0


def two_hosts(lan: Lan, first: Host, second: Host, run_dir: Path) -> None:
    """AssertionError says what did not come as it should."""
    bring_up(first, second)
    run = RunOnHost(first, run_dir)
    run.start()
    try:
        waited = run.wait_until(lambda: children_on(second) and progress(run) > 0, "a run on both")
        say(f"updates after {waited:.0f} s; on the second host: {', '.join(children_on(second))}")
        wait_for_progress(run)
        second = lose_and_take_back(lan, first, second, run)
        code = timed("stop", run.stop)
    finally:
        run.kill()
    assert code == EXIT_RESUMABLE, f"exit code {code}\n{run.output()[-4000:]}"
    assert run.events("checkpoint") and "Traceback" not in run.output(), run.output()[-4000:]
    take_down(first, second)


def bring_up(first: Host, second: Host) -> None:
    for host in (first, second):
        (host.home / "warpzone-cluster").symlink_to(ROOT)
    (first.home / "my-cluster.yaml").write_text(filled_in())
    first.run(MAKE_TOKEN)
    checking = f"cd {CHECKOUT} && PYTHONPATH=. .venv/bin/python launch/cluster/check.py"
    say(first.run(f"{checking} ~/my-cluster.yaml").strip())
    timed("ray up", lambda: first.run(f"{RAY} up -y ~/my-cluster.yaml", LIMIT_S))
    timed("the second host joined", lambda: wait_for_nodes(first, 2))
    mode = second.run("stat -c %a ~/.ray/auth_token").strip()
    assert mode == "600", f"the token came to the second host with mode {mode}"


def lose_and_take_back(lan: Lan, first: Host, second: Host, run: RunOnHost) -> Host:
    """The second host as it is afterwards."""
    lan.lose(second)
    lost_at = time.time()
    run.wait_until(lambda: run.events("child_failed", lost_at), "notice of the loss")
    failed = run.events("child_failed", lost_at)
    say(f"noticed {failed[0]['timestamp'] - lost_at:.0f} s after the loss")
    wait_for_progress(run)
    say(f"went on; failed: {', '.join(sorted({event['child'] for event in failed}))}")
    wait_for_nodes(first, 1)
    second = lan.add(second.name, second.address)
    timed("the second host was taken back", lambda: wait_for_nodes(first, 2))
    run.wait_until(lambda: "EnvActor" in children_on(second), "an env actor there again")
    wait_for_progress(run)
    return second


def take_down(first: Host, second: Host) -> None:
    timed("ray down", lambda: first.run(f"{RAY} down -y ~/my-cluster.yaml", LIMIT_S))
    # Ray leaves the others to themselves.
    first.run(f"ssh {second.address} {BIN}/ray stop", LIMIT_S)
    for host in (first, second):
        left = [" ".join(words_of(process))[:100] for process in host.processes()]
        left = [words for words in left if "ray::" in words or "/ray/" in words]
        assert not left, f"ray down left {left} on {host.name}"


def filled_in() -> str:
    text = (ROOT / "launch" / "cluster" / "local.yaml").read_text()
    for blank, value in FILLED.items():
        assert blank in text, blank
        text = text.replace(blank, value)
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not any(word in line for word in LEFT_OUT))


def wait_for_nodes(host: Host, n_nodes: int) -> None:
    counting = f"{BIN}/python -c \"import ray; ray.init('auto', log_to_driver=False); \
print(sum(node['Alive'] for node in ray.nodes()))\""
    deadline = time.monotonic() + LIMIT_S
    while (found := host.run(f"RAY_AUTH_MODE=token {counting}").split()[-1]) != str(n_nodes):
        assert time.monotonic() < deadline, f"{found} nodes instead of {n_nodes}"
        time.sleep(1.0)


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def children_on(host: Host) -> list[str]:
    """What Ray calls the actors there."""
    titles = [" ".join(words_of(process)).strip() for process in host.processes()]
    actors = {title.split(".")[0].removeprefix("ray::") for title in titles if "ray::" in title}
    return sorted(name for name in actors if name.endswith("Actor"))


def progress(run: RealRun) -> float:
    return run.metrics().get("update") or 0


def wait_for_progress(run: RealRun) -> None:
    """Play and learning, both after now."""
    before = run.metrics()
    run.wait_until(
        lambda: (
            run.metrics()["global_step"] > before["global_step"] + 100
            and run.metrics()["update"] > before["update"]
        ),
        "play and learning",
    )


def timed(what: str, action: Callable[[], object]) -> object:
    started = time.monotonic()
    result = action()
    say(f"{what}: {time.monotonic() - started:.0f} s")
    return result


def say(text: str) -> None:
    for line in text.splitlines():
        sys.stdout.write(f"[hosts] {line}\n")
    sys.stdout.flush()


def _last_words(host: Host) -> str:
    """Of Ray's autoscaler on the first host, for whoever has to find out what went wrong."""
    return host.run("tail -n 40 /tmp/ray/session_latest/logs/monitor.* 2> /dev/null; true")


if __name__ == "__main__":
    sys.exit(main())
