"""The files for `ray up`, by Ray's own schema and rules and by the check for users."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launch.cluster import check
from launch.cluster.launcher_file import LauncherFile, read_launcher_file
from launch.config import ConfigError
from tests.cluster.hosts import KEY, Lan, visible_to_hosts, why_not

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "launch" / "cluster"
CLOUDS = ("aws", "gcp", "azure")
KINDS = (*CLOUDS, "local")
FIRST, SECOND = "192.168.1.10", "192.168.1.11"
FILLED = {
    "FILL-IN-FIRST": FIRST,
    "FILL-IN-SECOND": SECOND,
    "FILL-IN-USER": "root",
    "FILL-IN-NFS": "10.0.0.2:/runs",
}


def filled(kind: str) -> LauncherFile:
    """A file as its user completes it."""
    text = (FOLDER / f"{kind}.yaml").read_text()
    for word, value in FILLED.items():
        text = text.replace(word, value)
    return yaml.safe_load(re.sub(r"FILL-IN-\w+", "something", text))


def furnish(home: Path) -> None:
    """What the files name of a home."""
    (home / ".ray").mkdir(exist_ok=True)
    (token := home / ".ray" / "auth_token").write_text("0" * 64)
    token.chmod(0o600)
    (home / "warpzone.tar.gz").touch()
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh" / "warpzone").touch()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder := tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    furnish(folder)
    return folder


def read(home: Path, content: LauncherFile) -> LauncherFile:
    path = home / "cluster.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_launcher_file(path)


@pytest.mark.parametrize("kind", KINDS)
def test_ray_takes_the_file_once_it_is_filled_in(kind: str, home: Path) -> None:
    complete = read(home, filled(kind))
    assert complete["provider"]["type"] == kind
    with pytest.raises(ConfigError) as caught:
        read_launcher_file(FOLDER / f"{kind}.yaml")
    left = set(re.findall(r"FILL-IN-\w+", (FOLDER / f"{kind}.yaml").read_text()))
    assert left and all(word in str(caught.value) for word in left)


@pytest.mark.parametrize("kind", CLOUDS)
def test_groups_have_limits_and_only_what_may_be_lost_is_on_spot(kind: str, home: Path) -> None:
    complete = read(home, filled(kind))
    groups = dict(complete["available_node_types"])
    head = groups.pop(complete["head_node_type"])
    assert head["max_workers"] == 0 and not is_spot(head)
    assert "GPU" in head["resources"], "the learner is on the head"
    assert sum(group["max_workers"] for group in groups.values()) <= complete["max_workers"]
    assert all(is_spot(group) and group["max_workers"] < 10 for group in groups.values())
    with_gpu = [name for name, group in groups.items() if "GPU" in group["resources"]]
    assert with_gpu == ["gpu"] and groups["env"]["min_workers"] > 0


def is_spot(group: dict) -> bool:
    return "spot" in str(group["node_config"]).lower()


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_is_one_and_set_up_ends_in_the_locked_requirements(kind: str) -> None:
    content = filled(kind)
    keys = [key for key in content if key.endswith("_commands")]
    for command in [command for key in keys for command in content[key]]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    installing = [command for command in content["setup_commands"] if "make setup" in command]
    assert len(installing) == 1
    target = subprocess.run(
        ["make", "--dry-run", "setup"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "launch/setup_env.py" in target.stdout
    for name in re.findall(r"requirements/\w+\.txt", str(content)):
        assert (ROOT / name).exists()


def changed(kind: str, change: Callable[[LauncherFile], object]) -> LauncherFile:
    content = copy.deepcopy(filled(kind))
    change(content)
    return content


UNKNOWN = {
    "top": (lambda c: c.update(idle_timeout_minute=5), "'idle_timeout_minutes'"),
    "provider": (lambda c: c["provider"].update(worker_ip=[]), "'worker_ips'"),
    "auth": (lambda c: c["auth"].update(ssh_usr="me"), "'ssh_user'"),
    "nothing near": (lambda c: c["auth"].update(zzz="me"), "there are: ssh_private_key"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_key_is_named_with_the_one_that_was_meant(name: str, home: Path) -> None:
    change, meant = UNKNOWN[name]
    with pytest.raises(ConfigError, match="unknown key") as caught:
        read(home, changed("local", change))
    assert meant in str(caught.value)


def test_an_unknown_key_of_a_node_type(home: Path) -> None:
    for kind in CLOUDS:
        content = filled(kind)
        content["available_node_types"]["env"]["max_worker"] = 3
        with pytest.raises(ConfigError, match=r"'max_worker' in available_node_types\.env"):
            read(home, content)
    content = filled("azure")
    content["available_node_types"]["env"]["node_config"]["azure_arm_parameters"]["vmsize"] = "x"
    with pytest.raises(ConfigError, match="did you mean 'vmSize'"):
        read(home, content)


WRONG = {
    "type": (lambda c: c.update(max_workers="two"), "max_workers: 'two' is not of type"),
    "provider": (lambda c: c["provider"].update(type="locl"), "provider.type='locl'"),
    "no head": (lambda c: c["provider"].pop("head_ip"), "provider.head_ip must be given"),
    "groups": (lambda c: c.update(head_node_type="head"), "not for provider local"),
    "no commands": (lambda c: c.pop("worker_start_ray_commands"), "would start without a token"),
    "no token": (
        lambda c: c.update(head_start_ray_commands=["ray start --head"]),
        "head_start_ray_commands must set RAY_AUTH_MODE=token",
    ),
    "no key": (lambda c: c["auth"].pop("ssh_private_key"), "auth.ssh_private_key must be given"),
    "token stays": (lambda c: c.update(file_mounts={}), "file_mounts must bring the token"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_ray_would_find_out_late_is_refused(name: str, home: Path) -> None:
    change, message = WRONG[name]
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(home, changed("local", change))


def test_more_workers_at_least_than_at_most(home: Path) -> None:
    content = filled("aws")
    content["available_node_types"]["env"]["min_workers"] = 11
    with pytest.raises(ConfigError, match="max_workers"):
        read(home, content)


def test_files_that_are_missing_or_open_to_others(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read(home, filled("local"))
    token.chmod(0o600)
    token.write_text("\n")
    with pytest.raises(ConfigError, match=r"is empty.*docs/security\.md"):
        read(home, filled("local"))
    furnish(home)
    (home / ".ssh" / "warpzone").unlink()
    with pytest.raises(ConfigError, match="ssh-keygen"):
        read(home, filled("local"))
    furnish(home)
    (home / "warpzone.tar.gz").unlink()
    with pytest.raises(ConfigError, match=r"file_mounts\.~/warpzone\.tar\.gz"):
        read(home, filled("local"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- a", "must hold keys and values"), ("a: 1", "'provider'")],
)
def test_what_is_no_such_file(tmp_path: Path, text: str, message: str) -> None:
    (path := tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_launcher_file(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_launcher_file(tmp_path / "absent.yaml")


def test_the_command_says_what_is_wrong_and_exits_with_2(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "cluster.yaml"
    path.write_text(yaml.safe_dump(filled("aws")))
    assert check.main([str(path)]) == 0
    assert "ray up -y" in capsys.readouterr().out
    for arguments in (["absent.yaml"], [], ["a", "b"]):
        with pytest.raises(SystemExit) as caught:
            check.main(arguments)
        assert caught.value.code == 2 and "error: " in capsys.readouterr().err


ASK = """
import json, sys
from launch.cluster.hosts import check_hosts
from launch.config import ConfigError

first, key, *others = sys.argv[1:]
auth = {"ssh_user": "root", "ssh_private_key": key}
for address in others:
    provider = {"head_ip": first, "worker_ips": [address]}
    try:
        said = sorted(check_hosts({"provider": provider, "auth": auth}))
    except ConfigError as error:
        said = str(error)
    print(json.dumps(said))
"""


@pytest.mark.skipif(why_not() is not None, reason=f"hosts: {why_not()}")
def test_machines_are_asked_before_ray_is(tmp_path: Path) -> None:
    """On hosts with ssh servers; Ray is not started."""
    addresses = [f"192.168.1.{10 + i}" for i in range(6)]
    first, fine, bare, older, locked, absent = addresses
    with Lan(tmp_path, visible_to_hosts(tmp_path)) as lan:
        hosts = {address: lan.add(f"host{i}", address) for i, address in enumerate(addresses[:5])}
        hosts[bare].run("mount --bind /dev/null $(command -v rsync)")
        hosts[older].run(
            "mount -t tmpfs none /usr/local/bin && cd /usr/local/bin &&"
            "printf '#!/bin/sh\\necho 3.11.0\\n' > python3.11 && chmod +x python3.11"
        )
        (hosts[locked].home / ".ssh" / "authorized_keys").write_text("")
        (tmp_path / "ask.py").write_text(ASK)
        words = [sys.executable, str(tmp_path / "ask.py"), first, f"~/{KEY}", *addresses[1:]]
        output = hosts[first].run(f"PYTHONPATH={ROOT} {' '.join(words)}")
    said = dict(zip(addresses[1:], map(json.loads, output.splitlines()), strict=True))
    assert said[fine] == [first, fine]
    assert f"{bare} has no rsync" in said[bare]
    assert f"{older} has Python 3.11.0, but {first} has" in said[older]
    assert f"no way to root@{locked} by ssh" in said[locked] and "Permission denied" in said[locked]
    assert f"no way to root@{absent} by ssh" in said[absent]
