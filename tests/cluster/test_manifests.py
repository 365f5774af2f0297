"""Every object of `k8s/` against the schema of its kind and against the operator's own rules."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import yaml

from tests.cluster.kustomize import Manifest
from tests.cluster.manifests import (
    BUILDS,
    CLUSTERS,
    JOBS,
    K8S,
    built,
    complaints,
    one,
    pod_templates,
    validators,
)
from tests.cluster.operator_rules import broken_rules

CLUSTER, JOB = "overlays/gpu-spot/cluster", "overlays/gpu-spot/job"


def real_kustomize() -> list[str]:
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    pytest.skip("neither kustomize nor kubectl is on PATH")


def changed(manifest: Manifest, path: str, value: object) -> Manifest:
    """`manifest` with one field set, or taken away where `value` is None."""
    *way, last = path.split("/")
    node = manifest
    for step in way:
        node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return manifest


@pytest.mark.parametrize("folder", BUILDS)
def test_the_reader_of_these_tests_builds_what_kustomize_builds(folder: str) -> None:
    output = subprocess.run(
        [*real_kustomize(), str(K8S / folder)], capture_output=True, text=True, timeout=120
    )
    assert output.returncode == 0, output.stderr
    real = yaml.load_all(output.stdout, Loader=yaml.CSafeLoader)
    texts = [sorted(json.dumps(m, sort_keys=True) for m in side) for side in (real, built(folder))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("folder", [folder for folder in BUILDS if folder != "pod-monitor"])
def test_objects_fit_the_schemas_of_their_kinds(folder: str) -> None:
    said = {manifest["kind"]: complaints(manifest) for manifest in built(folder)}
    assert said and not any(said.values()), said


def test_metadata_of_custom_resources_is_that_of_any_object() -> None:
    """A CRD's schema says nothing of metadata."""
    for folder in CLUSTERS + JOBS:
        for manifest in built(folder):
            assert not complaints(
                {**one(built("common"), "ServiceAccount"), **{"metadata": manifest["metadata"]}}
            )


HEAD = "spec/headGroupSpec/template"
POD = f"{HEAD}/spec"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/workerGroupSpecs/0/replica", 2),
        ("spec/workerGroupSpecs/0/replicas", "2"),
        ("spec/enableInTreeAutoscalin", True),
        ("spec/authOptions/mode", "tokens"),
        ("spec/authOptions/secret", "x"),
        (f"{HEAD}/metadata/label", {}),
        (f"{POD}/terminationGracePeriod", 180),
        (f"{POD}/containers/0/resources/limit", {}),
        (f"{POD}/containers/0/resources/limits/memory", "8 GB"),
        (f"{POD}/containers/0/lifecycle/preStop/exe", {}),
        (f"{POD}/containers/0/ports/0/port", 1),
        (f"{POD}/volumes/0/emptyDir/size", "1Gi"),
        (f"{POD}/securityContext/runAsNonroot", True),
        (f"{POD}/affinity/nodeAffinity/required", {}),
        ("spec/headGroupSpec/rayStartParams/num-cpus", 3),
        ("spec/headGroupSpec", None),
        ("status", {}),
    ],
)
def test_the_schemas_refuse_slips(path: str, value: object) -> None:
    assert complaints(changed(one(built(CLUSTER), "RayCluster"), path, value))


@pytest.mark.parametrize(
    ("folder", "kind", "path", "value"),
    [
        ("common", "PodDisruptionBudget", "spec/minAvailible", 1),
        ("common", "PriorityClass", "preemption", "Never"),
        ("common", "PersistentVolumeClaim", "spec/accessMode", []),
        ("common", "NetworkPolicy", "spec/ingres", []),
        ("common", "Namespace", "metadata/label", {}),
        (CLUSTER, "Deployment", "spec/template/spec/containers/0/commands", []),
        (CLUSTER, "Service", "spec/ports/0/target", 1),
        (JOB, "RayJob", "spec/backofLimit", 1),
        (JOB, "RayJob", "spec/rayClusterSpec/rayVersions", "1"),
        (JOB, "RayJob", "spec/submitterPodTemplate/spec/containers/0/imagePolicy", "1"),
    ],
)
def test_every_kind_has_its_schema(folder: str, kind: str, path: str, value: object) -> None:
    manifest = next(m for m in built(folder) if m["kind"] == kind)
    assert complaints(changed(manifest, path, value))


def test_the_pod_monitor_names_a_port_that_pods_have() -> None:
    """Its schema is not among ours; these are all of its fields."""
    monitor = one(built("pod-monitor"), "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint.keys() == {"port", "path", "interval"}
    assert monitor["spec"].keys() == {"selector", "podMetricsEndpoints"}
    templates = pod_templates(built(CLUSTER))
    for name in ("head", "env"):
        container = templates[name]["spec"]["containers"][0]
        (port,) = [p["containerPort"] for p in container["ports"] if p["name"] == endpoint["port"]]
        annotations = templates[name]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(port)
        assert annotations["prometheus.io/path"] == endpoint["path"]


@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_the_operator_would_take_it(folder: str) -> None:
    (manifest,) = [m for m in built(folder) if m["kind"] in ("RayCluster", "RayJob")]
    assert broken_rules(manifest) == []


ENV_GROUP = "spec/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("RayCluster", "metadata/name", "w" * 54, "more than 53"),
        ("RayCluster", "metadata/name", "1-warpzone", "DNS-1035"),
        ("RayCluster", f"{POD}/containers", [], "no container"),
        ("RayCluster", "spec/headGroupSpec/resources", {"CPU": "3"}, "both"),
        ("RayCluster", f"{ENV_GROUP}/rayStartParams/labels", "a=b", "labels"),
        ("RayCluster", f"{ENV_GROUP}/minReplicas", 9, "outside"),
        ("RayCluster", f"{ENV_GROUP}/maxReplicas", None, "needs replicas"),
        ("RayCluster", f"{ENV_GROUP}/groupName", "head", "same name"),
        ("RayCluster", "spec/rayVersion", None, "2.52"),
        ("RayCluster", "spec/rayVersion", "2.51.1", "2.52"),
        ("RayCluster", f"{POD}/containers/0/env", [{"name": "REDIS_USERNAME"}], "REDIS"),
        ("RayCluster", "spec/suspend", True, "not covered"),
        ("RayJob", "metadata/name", "w" * 48, "more than 47"),
        ("RayJob", "spec/submissionMode", "InteractiveMode", "backoffLimit"),
        ("RayJob", "spec/submissionMode", "SidecarMode", "no submitter"),
        ("RayJob", "spec/shutdownAfterJobFinishes", False, "shutdownAfterJobFinishes"),
        ("RayJob", "spec/activeDeadlineSeconds", 0, "positive"),
        ("RayJob", "spec/backoffLimit", -1, "negative"),
        ("RayJob", "spec/clusterSelector", {"ray.io/cluster": "x"}, "not covered"),
        ("RayJob", "spec/runtimeEnvYAML", "env_vars: [", "YAML"),
    ],
)
def test_the_rules_refuse_what_breaks_them(kind: str, path: str, value: object, said: str) -> None:
    manifest = one(built(CLUSTER if kind == "RayCluster" else JOB), kind)
    assert any(said in line for line in broken_rules(changed(manifest, path, value)))


def test_scaled_groups_may_not_restart_in_place() -> None:
    cluster = one(built(CLUSTER), "RayCluster")
    cluster = changed(cluster, "spec/enableInTreeAutoscaling", True)
    assert broken_rules(cluster) == []
    cluster = changed(cluster, f"{POD}/restartPolicy", "Always")
    assert any("restartPolicy" in line for line in broken_rules(cluster))


def test_schemas_know_every_kind_in_use() -> None:
    kinds = {manifest["kind"] for folder in BUILDS for manifest in built(folder)}
    assert kinds - validators().keys() == {"PodMonitor"}
