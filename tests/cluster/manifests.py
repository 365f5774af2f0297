"""What tests of `k8s/` share: its builds, and ways into them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator

from tests.cluster.kustomize import Manifest, build

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
SCHEMAS = Path(__file__).parent / "schemas"
OVERLAYS = ("cpu-small", "gpu", "gpu-spot")
CLUSTERS = [f"overlays/{name}/cluster" for name in OVERLAYS]
JOBS = [f"overlays/{name}/job" for name in OVERLAYS]
BUILDS = ["common", "pod-monitor", *CLUSTERS, *JOBS]


def built(folder: str) -> list[Manifest]:
    """The objects of a folder below k8s/, a copy of their own for every caller."""
    return json.loads(_text(folder))


@cache
def _text(folder: str) -> str:
    return json.dumps(build(K8S / folder))


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (found,) = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and name in (None, manifest["metadata"]["name"])
    ]
    return found


def ray_cluster(folder: str) -> Manifest:
    """The spec of the Ray cluster in a build, its own or its job's."""
    manifests = built(folder)
    if folder in JOBS:
        return one(manifests, "RayJob")["spec"]["rayClusterSpec"]
    return one(manifests, "RayCluster")["spec"]


def groups(cluster: Manifest) -> dict[str, Manifest]:
    """Head and worker groups by name."""
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"], **workers}


def pod_templates(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Every pod template of a build, by what makes pods of it."""
    found = {}
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind == "Deployment":
            found[manifest["metadata"]["name"]] = spec["template"]
        if kind == "RayJob":
            found["submitter"] = spec["submitterPodTemplate"]
            spec = spec["rayClusterSpec"]
        if kind in ("RayCluster", "RayJob"):
            found |= {name: group["template"] for name, group in groups(spec).items()}
    return found


@cache
def validators() -> dict[str, Draft202012Validator]:
    """By kind; unknown fields are refused."""
    found = {}
    for file in ("kuberay.json", "kubernetes.json"):
        schemas = json.loads((SCHEMAS / file).read_text())
        for kind, schema in schemas["kinds"].items():
            found[kind] = Draft202012Validator({**schema, "$defs": schemas["$defs"]})
    return found


def complaints(manifest: Manifest) -> list[str]:
    """What the schema of its kind says against an object."""
    errors = validators()[manifest["kind"]].iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


GIBI = 2**30
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": GIBI, "m": 1e-3, "": 1.0}


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number."""
    number = str(text).rstrip("KMGim")
    return float(number) * UNITS[str(text)[len(number) :]]
