"""What KubeRay's operator refuses although the CRD's schema allows it.

Its validation says so when the object is already in the cluster, in the object's status, where it
is easily missed. Rules about parts that `k8s/` does not use (deletion strategy, Redis, suspension)
are those parts' absence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

Manifest = dict[str, object]

LONGEST_CLUSTER_NAME = 53  # a pod's name adds the group and five random letters
LONGEST_JOB_NAME = 47  # its cluster's name adds five random letters
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # a DNS-1035 label
FIRST_WITH_TOKENS = (2, 52)
NOT_USED = {"deletionStrategy", "suspend", "clusterSelector", "gcsFaultToleranceOptions"}
SCHEMES_OF_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}


def broken_rules(manifest: Manifest) -> list[str]:
    """One line for each rule that a RayCluster or RayJob breaks."""
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    if manifest["kind"] == "RayCluster":
        return [*_name(name, LONGEST_CLUSTER_NAME), *_cluster(spec)]
    return [*_name(name, LONGEST_JOB_NAME), *_job(spec), *_cluster(spec.get("rayClusterSpec", {}))]


def _name(name: str, longest: int) -> Iterator[str]:
    if len(name) > longest:
        yield f"name {name!r} has more than {longest} characters"
    if not NAME.fullmatch(name):
        yield f"name {name!r} is no DNS-1035 label"


def _cluster(spec: Manifest) -> Iterator[str]:
    for part in NOT_USED & spec.keys():
        yield f"{part} is not covered here"
    is_scaled = spec.get("enableInTreeAutoscaling", False)
    head = spec.get("headGroupSpec", {})
    groups = {"head": head} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    if len(groups) != 1 + len(spec["workerGroupSpecs"]):
        yield "two groups have the same name"
    for name, group in groups.items():
        yield from _group(name, group, is_scaled)
        if name != "head":
            yield from _size(name, group, is_scaled)
    if spec.get("authOptions", {}).get("mode") == "token":
        version = re.match(r"(\d+)\.(\d+)\.", str(spec.get("rayVersion", "")))
        if not version or tuple(map(int, version.groups())) < FIRST_WITH_TOKENS:
            yield f"token mode needs rayVersion 2.52 or newer, not {spec.get('rayVersion')!r}"


def _group(name: str, group: Manifest, is_scaled: bool) -> Iterator[str]:
    pod = group["template"]["spec"]
    start = group.get("rayStartParams", {})
    if not pod.get("containers"):
        yield f"group {name} has no container"
    if group.get("resources") and SCHEMES_OF_RESOURCES & start.keys():
        yield f"group {name} has resources both of its own and in rayStartParams"
    if "labels" in start:
        yield f"group {name} has labels in rayStartParams"
    if is_scaled and pod.get("restartPolicy", "Never") != "Never":
        yield f"group {name} is scaled and has restartPolicy {pod['restartPolicy']}"
    for variable in pod["containers"][0].get("env", []) if pod.get("containers") else []:
        if variable["name"] in ("RAY_REDIS_ADDRESS", "REDIS_USERNAME", "REDIS_PASSWORD"):
            yield f"group {name} sets {variable['name']}, which wants GCS fault tolerance"


def _size(name: str, group: Manifest, is_scaled: bool) -> Iterator[str]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if not is_scaled and None in (least, most, group.get("replicas")):
        yield f"group {name} needs replicas, minReplicas and maxReplicas"
    elif not least <= group["replicas"] <= most:
        yield f"group {name} has replicas outside [minReplicas, maxReplicas]"


def _job(spec: Manifest) -> Iterator[str]:
    for part in NOT_USED & spec.keys():
        yield f"{part} is not covered here"
    if "rayClusterSpec" not in spec:
        yield "neither rayClusterSpec nor clusterSelector"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode has no backoffLimit"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & spec.keys():
        yield "SidecarMode has no submitter of its own"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} must be positive"
    for name in ("backoffLimit", "ttlSecondsAfterFinished"):
        if spec.get(name, 0) < 0:
            yield f"{name} must not be negative"
    try:
        runtime_env = yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))
    except yaml.YAMLError:
        runtime_env = None
    if not isinstance(runtime_env, dict):
        yield "runtimeEnvYAML is no YAML mapping"
