"""Asks machines of one's own, over ssh, whether `ray up` will get along with them.

Ray itself tries a machine that does not answer for a quarter of an hour, and says of one that its
set-up fails on only in the head's logs.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.cluster.launcher_file import LauncherFile
from launch.config import ConfigError

CONNECT_S = 5
ANSWER_S = 30.0
SSH_FAILED = 255  # ssh's own code; any other is that of the command
QUESTION = (
    "rsync --version > /dev/null 2>&1 && echo rsync;"
    "python3.11 -c 'import platform; print(platform.python_version())' 2> /dev/null; true"
)


def check_hosts(complete: LauncherFile) -> dict[str, str]:
    """Python 3.11's version by machine, empty where there is none.

    Raises ConfigError, naming the machine, where one does not answer, does not take the key, lacks
    rsync, or has another Python 3.11 than the first: Ray wants them equal to the last digit.
    """
    provider, auth = complete["provider"], complete["auth"]
    addresses = [provider["head_ip"], *provider["worker_ips"]]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda address: _ask(address, auth), addresses))
    versions = {}
    for address, answer in zip(addresses, answers, strict=True):
        words = answer.split()
        if "rsync" not in words:
            raise ConfigError(f"{address} has no rsync, which brings files there: install it")
        versions[address] = "".join(word for word in words if word != "rsync")
    first = addresses[0]
    for address, version in versions.items():
        if version != versions[first]:
            raise ConfigError(
                f"{address} has Python {version or '3.11 not at all'}, but {first} has "
                f"{versions[first] or 'no 3.11'}; Ray refuses nodes that differ: install the same"
            )
    return versions


def _ask(address: str, auth: dict[str, str]) -> str:
    key = Path(auth["ssh_private_key"]).expanduser()
    options = ["BatchMode=yes", f"ConnectTimeout={CONNECT_S}", "StrictHostKeyChecking=accept-new"]
    words = ["ssh", "-i", str(key), *(word for option in options for word in ("-o", option))]
    target = f"{auth['ssh_user']}@{address}"
    try:
        done = subprocess.run(
            [*words, target, QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
        )
    except FileNotFoundError as error:
        raise ConfigError("there is no `ssh` here, which `ray up` needs: install it") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{target} did not answer within {ANSWER_S:.0f} s") from error
    if done.returncode == SSH_FAILED:
        cause = (done.stderr.strip().splitlines() or ["ssh failed"])[-1]
        raise ConfigError(
            f"no way to {target} by ssh ({cause}); try `{' '.join([*words[:3], target])}`"
        )
    return done.stdout
