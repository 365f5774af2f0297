"""The objects of an overlay fit each other, and a run's needs."""

from __future__ import annotations

import re
import shlex
import tomllib

import pytest
import yaml

from launch.control.config import ControlConfig
from tests.cluster.kustomize import Manifest
from tests.cluster.manifests import (
    CLUSTERS,
    JOBS,
    ROOT,
    built,
    groups,
    one,
    pod_templates,
    quantity,
    ray_cluster,
)

WORKLOADS = CLUSTERS + JOBS
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
RAY_VERSION = re.search(r"^ray==([\d.]+)", (ROOT / "requirements/cpu.txt").read_text(), re.M)[1]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
# A stop takes its budget and some seconds to notice it, to end children and to close files.
STOP_S = ControlConfig().stop_budget_s + 15


def every_pod(folder: str) -> list[tuple[str, Manifest]]:
    return [(name, template["spec"]) for name, template in pod_templates(built(folder)).items()]


def is_selected(selector: Manifest, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in rules), rules
    return wanted <= labels.items() and all(labels.get(r["key"]) in r["values"] for r in rules)


def selected(selector: Manifest, folder: str) -> set[str]:
    """Names of the pod templates that a selector means."""
    templates = pod_templates(built(folder))
    return {name for name, t in templates.items() if is_selected(selector, t["metadata"]["labels"])}


@pytest.mark.parametrize("folder", WORKLOADS)
def test_one_namespace_holds_all(folder: str) -> None:
    (namespace,) = {m["metadata"].get("namespace") for m in built(folder)}
    assert namespace == one(built("common"), "Namespace")["metadata"]["name"]
    shared = {m["metadata"].get("namespace") for m in built("common")}
    assert shared == {namespace, None}, "None: objects that belong to no namespace"
    assert {m["metadata"]["namespace"] for m in built("pod-monitor")} == {namespace}


@pytest.mark.parametrize("folder", WORKLOADS)
def test_pods_name_only_what_is_there(folder: str) -> None:
    common = built("common")
    names = {kind: set() for kind in ("PersistentVolumeClaim", "PriorityClass", "ServiceAccount")}
    for manifest in common:
        if manifest["kind"] in names:
            names[manifest["kind"]].add(manifest["metadata"]["name"])
    for name, pod in every_pod(folder):
        assert pod["serviceAccountName"] in names["ServiceAccount"], name
        assert pod.get("priorityClassName") in names["PriorityClass"] | {None}, name
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claims = {
            v["persistentVolumeClaim"]["claimName"]
            for v in volumes.values()
            if "persistentVolumeClaim" in v
        }
        assert claims <= names["PersistentVolumeClaim"], name
        for container in pod["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} == volumes.keys(), name
    assert dict(every_pod(folder))["head"]["priorityClassName"] == "warpzone-head"


@pytest.mark.parametrize("folder", WORKLOADS)
def test_secrets_are_made_as_the_page_says(folder: str) -> None:
    auth = ray_cluster(folder)["authOptions"]
    assert auth["mode"] == "token"
    made = re.findall(r"kubectl -n (\S+) create secret generic (\S+) --from-file=(\w+)=", PAGE)
    assert made == [("warpzone", auth["secretName"], "auth_token")]
    pods = yaml.safe_dump([pod for _, pod in every_pod(folder)])
    assert "secretKeyRef" not in pods and "secretRef" not in pods and "secret:" not in pods


@pytest.mark.parametrize("folder", WORKLOADS)
def test_requests_equal_limits(folder: str) -> None:
    """Ray counts the limits; a pod that asks for less than it uses is evicted first."""
    for name, pod in every_pod(folder):
        for container in pod["containers"]:
            resources = container["resources"]
            assert resources["requests"] == resources["limits"], name
            assert {"cpu", "memory"} <= resources["limits"].keys(), name


@pytest.mark.parametrize("folder", WORKLOADS)
def test_images_are_pinned_and_alike(folder: str) -> None:
    device = "cpu" if "cpu" in folder else "gpu"
    images = {c["image"] for _, pod in every_pod(folder) for c in pod["containers"]}
    assert images == {f"registry.example.com/warpzone:{VERSION}-{device}"}
    assert ray_cluster(folder)["rayVersion"] == RAY_VERSION


@pytest.mark.parametrize("folder", WORKLOADS)
def test_the_object_store_fits_into_shared_memory(folder: str) -> None:
    """Shared memory counts as memory of the container, and the processes need the rest."""
    for name, group in groups(ray_cluster(folder)).items():
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
        (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
        assert volume["emptyDir"]["medium"] == "Memory", name
        size = quantity(volume["emptyDir"]["sizeLimit"])
        assert int(group["rayStartParams"]["object-store-memory"]) < size, name
        assert size <= 0.35 * quantity(container["resources"]["limits"]["memory"]), name


@pytest.mark.parametrize("folder", WORKLOADS)
def test_the_driver_has_a_core_of_its_own(folder: str) -> None:
    head = groups(ray_cluster(folder))["head"]
    cores = quantity(head["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert int(head["rayStartParams"]["num-cpus"]) == cores - 1


@pytest.mark.parametrize("folder", WORKLOADS)
def test_pods_have_the_time_that_a_stop_takes(folder: str) -> None:
    drain_s, grace_s = {}, {}
    for name, group in groups(ray_cluster(folder)).items():
        pod = group["template"]["spec"]
        env = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
        drain_s[name] = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        grace_s[name] = pod["terminationGracePeriodSeconds"]
    # The head: first the hook, which waits for the driver, then Ray's own drain.
    assert grace_s["head"] >= STOP_S + drain_s["head"] + 15
    # Workers told to end at the same moment are needed for the checkpoint.
    assert drain_s["env"] >= STOP_S
    assert grace_s["env"] >= drain_s["env"] + 15


@pytest.mark.parametrize("folder", JOBS)
def test_a_job_tries_again_and_has_time_to_stop(folder: str) -> None:
    spec = one(built(folder), "RayJob")["spec"]
    assert spec["backoffLimit"] >= 3
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= STOP_S
    words = shlex.split(spec["entrypoint"])
    assert "--max-hours" not in words, "its code 75 is a failure here: the run would begin again"
    run_dir = words[words.index("--run-dir") + 1]
    mounts = groups(spec["rayClusterSpec"])["head"]["template"]["spec"]["containers"][0]
    assert any(run_dir.startswith(m["mountPath"] + "/") for m in mounts["volumeMounts"])
    for name, group in groups(spec["rayClusterSpec"]).items():
        volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
        claim = volumes["runs"]["persistentVolumeClaim"]["claimName"]
        assert claim == "warpzone-runs", f"{name}: each attempt is a new cluster"
    page = one(built(folder), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "RUN", "value": run_dir} in page["env"], "the page shows another run"


@pytest.mark.parametrize(("cluster", "job"), zip(CLUSTERS, JOBS, strict=True))
def test_a_job_builds_the_cluster_of_its_overlay(cluster: str, job: str) -> None:
    assert ray_cluster(cluster) == ray_cluster(job)
    kinds = {m["kind"] for m in built(job)}
    assert "RayCluster" not in kinds and "RayJob" not in {m["kind"] for m in built(cluster)}


@pytest.mark.parametrize("folder", WORKLOADS)
def test_pods_are_what_the_namespace_admits(folder: str) -> None:
    labels = one(built("common"), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in every_pod(folder):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys(), name
        assert pod["automountServiceAccountToken"] is False, name
        for volume in pod["volumes"]:
            assert volume.keys() - {"name"} <= {"emptyDir", "persistentVolumeClaim"}, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }, name


@pytest.mark.parametrize("folder", WORKLOADS)
def test_services_lead_to_a_port_of_a_pod(folder: str) -> None:
    templates = pod_templates(built(folder))
    services = [m for m in built(folder) if m["kind"] == "Service"]
    assert {s["metadata"]["name"] for s in services} == {"warpzone-page", "warpzone-tensorboard"}
    for service in services:
        (name,) = selected({"matchLabels": service["spec"]["selector"]}, folder)
        ports = {
            port["name"]: port["containerPort"]
            for container in templates[name]["spec"]["containers"]
            for port in container["ports"]
        }
        (port,) = service["spec"]["ports"]
        assert ports[port["targetPort"]] == port["port"]
    deployment = one(built(folder), "Deployment")["spec"]
    assert is_selected(deployment["selector"], deployment["template"]["metadata"]["labels"])


@pytest.mark.parametrize("folder", WORKLOADS)
def test_the_budget_protects_the_head_and_nothing_else(folder: str) -> None:
    budget = one(built("common"), "PodDisruptionBudget")["spec"]
    assert selected(budget["selector"], folder) == {"head"}
    assert budget["minAvailable"] == 1


@pytest.mark.parametrize("folder", JOBS)
def test_the_network_lets_in_whom_it_must(folder: str) -> None:
    policies = {
        m["metadata"]["name"]: m["spec"] for m in built("common") if m["kind"] == "NetworkPolicy"
    }
    assert policies.pop("warpzone-deny") == {"podSelector": {}, "policyTypes": ["Ingress"]}
    doors = set()
    for policy in policies.values():
        (rule,) = policy["ingress"]
        ports = [p["port"] for p in rule.get("ports", [])] or ["all"]
        for source in rule["from"]:
            if "podSelector" in source:
                callers = selected(source["podSelector"], folder)
            else:
                callers = {
                    source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
                }
            hosts = selected(policy["podSelector"], folder)
            doors |= {(c, h, p) for c in callers for h in hosts for p in ports}
    ray = {(a, b, "all") for a in ("head", "env") for b in ("head", "env")}
    jobs = {("submitter", "head", 8265), ("kuberay-system", "head", 8265)}
    metrics = {("monitoring", "head", 8080), ("monitoring", "env", 8080)}
    assert doors == ray | jobs | metrics


def test_spot_nodes_get_what_may_be_lost() -> None:
    pods = dict(every_pod("overlays/gpu-spot/job"))
    terms = {
        name: pods[name]["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]["nodeSelectorTerms"]
        for name in ("head", "env")
    }
    (none_of,) = terms["head"]  # of one term all expressions must hold, of several terms one
    any_of = [expression for term in terms["env"] for expression in term["matchExpressions"]]
    assert len(any_of) == len(terms["env"])
    assert {e["operator"] for e in any_of} == {"In"}
    assert [{**e, "operator": "NotIn"} for e in any_of] == none_of["matchExpressions"]
    assert all("gpu" not in str(t) for t in pods["env"]["tolerations"])


@pytest.mark.parametrize("folder", WORKLOADS)
def test_gpus_are_asked_for_where_the_image_has_them(folder: str) -> None:
    gpus = {
        name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0")
        for name, pod in every_pod(folder)
    }
    expected = {name: "0" for name in gpus}
    if "cpu" not in folder:
        expected["head"] = "1"
    assert gpus == expected
