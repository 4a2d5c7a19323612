"""What `kubectl kustomize` makes of deploy/kubernetes, as far as that folder uses it; kubectl is not everywhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

_KEYS = ("name", "mountPath", "containerPort")
"""By which items of a list are the same (strategic merge)."""


def build(folder: Path) -> list[Resource]:
    """The resources of a kustomization."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[Resource] = []
    for name in kustomization["resources"]:
        path = folder / name
        found += build(path) if path.is_dir() else [yaml.safe_load(path.read_text())]
    for patch in kustomization.get("patches", ()):
        _patch(found, patch, folder)
    for labels in kustomization.get("labels", ()):
        for resource in found:
            _label(resource, labels["pairs"])
    for resource in found:
        if "namespace" in kustomization and resource["kind"] != "Namespace":
            resource["metadata"]["namespace"] = kustomization["namespace"]
        for image in kustomization.get("images", ()):
            _rename(resource, image)
    return found


def _patch(found: list[Resource], patch: Resource, folder: Path) -> None:
    if "path" in patch:
        merged = yaml.safe_load((folder / patch["path"]).read_text())
        (target,) = [r for r in found if (r["kind"], r["metadata"]["name"]) == (merged["kind"], merged["metadata"]["name"])]  # fmt: skip  # noqa: E501
        target.update(_merge(target, merged))
        return
    wanted = patch["target"]
    (target,) = [r for r in found if (r["kind"], r["metadata"]["name"]) == (wanted["kind"], wanted["name"])]
    for step in yaml.safe_load(patch["patch"]):
        *parents, last = step["path"].lstrip("/").split("/")
        place = target
        for parent in parents:
            place = place[parent]
        if step["op"] == "remove":
            del place[last]
        else:
            assert step["op"] == "add"
            place[last] = step["value"]


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        key = next((key for key in _KEYS if all(key in item for item in [*old, *new])), None)
        if key is not None:
            known = {item[key]: item for item in old}
            added = [item for item in new if item[key] not in known]
            given = {item[key]: item for item in new}
            return [*added, *(_merge(item, given.get(item[key], {})) for item in old)]
    return copy.deepcopy(new)


def _label(resource: Resource, pairs: dict[str, str]) -> None:
    resource["metadata"].setdefault("labels", {}).update(pairs)
    spec = resource.get("spec", {})
    if "selector" in spec:
        spec["selector"]["matchLabels"].update(pairs)
    if "template" in spec:
        spec["template"]["metadata"].setdefault("labels", {}).update(pairs)


def _rename(resource: Resource, image: dict[str, str]) -> None:
    pod = resource.get("spec", {}).get("template", {}).get("spec", {})
    for container in [*pod.get("containers", ()), *pod.get("initContainers", ())]:
        if container["image"] == image["name"]:
            container["image"] = f"{image['newName']}:{image['newTag']}"
