"""Builds the folders of `k8s/` as `kustomize build` does, so that tests need no kustomize.

Knows only what those folders use, and raises for anything else; test_manifests.py compares the
results with a real kustomize where there is one.
"""

from __future__ import annotations

import copy
from pathlib import Path

import yaml

Manifest = dict[str, object]

KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "patches",
    "images",
    "replacements",
}
WITHOUT_NAMESPACE = ("Namespace", "PriorityClass")


def build(folder: Path) -> list[Manifest]:
    """All objects of a kustomization. Raises ValueError for what this reader does not know."""
    return _apply(folder, [])


def _apply(folder: Path, manifests: list[Manifest]) -> list[Manifest]:
    """`manifests` and those of `folder`, changed as its kustomization says."""
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := settings.keys() - KNOWN:
        raise ValueError(f"{folder}: this reader does not know {sorted(unknown)}")
    for name in settings.get("resources", []):
        manifests = manifests + _read(folder / name)
    for name in settings.get("components", []):
        manifests = _apply(folder / name, manifests)
    for patch in settings.get("patches", []):
        manifests = _patched(folder, patch, manifests)
    for manifest in manifests:
        if "namespace" in settings and manifest["kind"] not in WITHOUT_NAMESPACE:
            manifest["metadata"]["namespace"] = settings["namespace"]
        for image in settings.get("images", []):
            _rename_images(manifest, image)
    for replacement in settings.get("replacements", []):
        _replace(replacement, manifests)
    return manifests


def _read(path: Path) -> list[Manifest]:
    if path.is_dir():
        return build(path)
    documents = yaml.safe_load_all(path.read_text())
    return [_unshared(document) for document in documents]


def _unshared(node: object) -> object:
    """A copy in which YAML's aliases are parts of their own; deepcopy keeps them shared."""
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(value) for value in node] if isinstance(node, list) else node


def _is_meant(target: dict[str, str], manifest: Manifest) -> bool:
    if unknown := target.keys() - {"kind", "name"}:
        raise ValueError(f"this reader does not know a target's {sorted(unknown)}")
    name = target.get("name", manifest["metadata"]["name"])
    return (target["kind"], name) == (manifest["kind"], manifest["metadata"]["name"])


def _patched(folder: Path, patch: Manifest, manifests: list[Manifest]) -> list[Manifest]:
    text = (folder / patch["path"]).read_text() if "path" in patch else patch["patch"]
    content = yaml.safe_load(text)
    if "target" not in patch:
        if content.get("$patch") != "delete":
            raise ValueError(f"{folder}: of patches without target this reader knows delete only")
        target = {"kind": content["kind"], "name": content["metadata"]["name"]}
        kept = [manifest for manifest in manifests if not _is_meant(target, manifest)]
        assert len(kept) == len(manifests) - 1, (folder, target)
        return kept
    meant = [manifest for manifest in manifests if _is_meant(patch["target"], manifest)]
    assert meant, (folder, patch["target"])
    for manifest in meant:
        for operation in content:
            _operate(operation, manifest)
    return manifests


def _operate(operation: Manifest, manifest: Manifest) -> None:
    *way, last = operation["path"].replace("~1", "/").lstrip("/").split("/")
    parent = _at(manifest, way)
    key = int(last) if isinstance(parent, list) else last
    if operation["op"] == "replace":
        parent[key]  # must be there
    elif operation["op"] != "add" or isinstance(parent, list):
        raise ValueError(f"this reader does not know {operation}")
    parent[key] = _unshared(operation["value"])


def _at(node: object, way: list[str]) -> object:
    for step in way:
        node = node[int(step) if isinstance(node, list) else step]
    return node


def _rename_images(node: object, image: dict[str, str]) -> None:
    if isinstance(node, list):
        for part in node:
            _rename_images(part, image)
    elif isinstance(node, dict):
        for container in node.get("containers", []):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
        for part in node.values():
            _rename_images(part, image)


def _replace(replacement: Manifest, manifests: list[Manifest]) -> None:
    source = dict(replacement["source"])
    way = source.pop("fieldPath").split(".")
    (origin,) = [manifest for manifest in manifests if _is_meant(source, manifest)]
    for target in replacement["targets"]:
        for manifest in manifests:
            if _is_meant(target["select"], manifest):
                for path in target["fieldPaths"]:
                    *parents, last = path.split(".")
                    _at(manifest, parents)[last] = copy.deepcopy(_at(origin, way))
