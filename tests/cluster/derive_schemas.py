"""Makes tests/cluster/schemas from the CRDs of KubeRay and JSON schemas of Kubernetes.

    python tests/cluster/derive_schemas.py --kuberay FOLDER --kubernetes FOLDER

FOLDER of KubeRay: `ray.io_rayclusters.yaml` and `ray.io_rayjobs.yaml`, as in its Helm chart.
FOLDER of Kubernetes: `v1.32.0-local-strict` of the PyPI package kubernetes-validate 1.37.0.
What comes out knows the kinds that `k8s/` uses, refuses unknown fields, and has no descriptions.
Equal parts are written once, which makes 2.3 MB of CRDs 40 KB. Both sources are Apache-2.0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

import yaml

SCHEMAS = Path(__file__).parent / "schemas"
CRDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
KINDS = {
    "Deployment": "deployment-apps-v1",
    "Namespace": "namespace-v1",
    "NetworkPolicy": "networkpolicy-networking-v1",
    "PersistentVolumeClaim": "persistentvolumeclaim-v1",
    "PodDisruptionBudget": "poddisruptionbudget-policy-v1",
    "PriorityClass": "priorityclass-scheduling-v1",
    "Service": "service-v1",
    "ServiceAccount": "serviceaccount-v1",
}
SHORTEST_SHARED = 150  # characters of a part that is written once and referred to


def strict(node: object) -> object:
    """A JSON schema without what only Kubernetes reads, that refuses unknown fields."""
    if isinstance(node, list):
        return [strict(part) for part in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return {}
    properties = node.get("properties")
    kept = {
        key: strict(value)
        for key, value in node.items()
        if not key.startswith("x-kubernetes-") and key not in ("properties", "description")
    }
    if isinstance(properties, dict):
        kept["properties"] = {name: strict(part) for name, part in properties.items()}
        kept.setdefault("additionalProperties", False)
    return kept


def kuberay(folder: Path) -> dict[str, object]:
    kinds = {}
    for kind, file in CRDS.items():
        crd = yaml.load((folder / file).read_text(), Loader=yaml.CSafeLoader)
        (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["apiVersion"] = {"const": "ray.io/v1"}
        schema["properties"]["kind"] = {"const": kind}
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        del schema["properties"]["status"]
        kinds[kind] = schema
    return kinds


def shared(kinds: dict[str, object]) -> dict[str, object]:
    """`kinds` with equal parts moved to $defs."""
    counts: Counter[str] = Counter()
    definitions: dict[str, object] = {}

    def count(node: object) -> None:
        parts = node.values() if isinstance(node, dict) else node
        if isinstance(node, dict):
            text = json.dumps(node, sort_keys=True)
            counts[text] += 1
            if counts[text] > 1:
                return
        if isinstance(node, dict | list):
            for part in parts:
                count(part)

    def refer(node: object) -> object:
        if isinstance(node, list):
            return [refer(part) for part in node]
        if not isinstance(node, dict):
            return node
        text = json.dumps(node, sort_keys=True)
        if counts[text] == 1 or len(text) < SHORTEST_SHARED:
            return {key: refer(part) for key, part in node.items()}
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = {key: refer(part) for key, part in node.items()}
        return {"$ref": f"#/$defs/{name}"}

    count(kinds)
    kinds = {kind: refer(schema) for kind, schema in kinds.items()}
    return {"kinds": kinds, "$defs": definitions}


def kubernetes(folder: Path) -> dict[str, object]:
    """The schemas of KINDS and all definitions they lead to."""
    known = json.loads((folder / "_definitions.json").read_text())["$defs"]
    definitions: dict[str, object] = {}

    def take(node: object) -> object:
        if isinstance(node, list):
            return [take(part) for part in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            if name not in definitions:
                definitions[name] = {}
                definitions[name] = take(strict(known[name]))
            return {"$ref": f"#/$defs/{name}"}
        return {key: take(part) for key, part in node.items()}

    kinds = {}
    for kind, file in KINDS.items():
        schema = strict(json.loads((folder / f"{file}.json").read_text()))
        del schema["$id"], schema["$schema"]  # references are looked up from the top of our file
        schema["properties"].pop("status", None)
        schema["required"] = ["apiVersion", "kind", "metadata"]
        kinds[kind] = take(schema)
    return {"kinds": kinds, "$defs": definitions}


def write(name: str, schemas: dict[str, object]) -> None:
    """One line a part, so that a newer version shows what changed."""
    lines = []
    for group, parts in schemas.items():
        body = ",\n".join(
            f"{json.dumps(key)}: {json.dumps(part, sort_keys=True)}"
            for key, part in sorted(parts.items())
        )
        lines.append(f"{json.dumps(group)}: {{\n{body}\n}}")
    (SCHEMAS / name).write_text("{" + ",\n".join(lines) + "}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kuberay", type=Path, required=True)
    parser.add_argument("--kubernetes", type=Path, required=True)
    folders = parser.parse_args()
    write("kuberay.json", shared(kuberay(folders.kuberay)))
    write("kubernetes.json", kubernetes(folders.kubernetes))


if __name__ == "__main__":
    main()
