"""What `kubectl kustomize` makes of a copy of deploy/kubernetes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import in_ci
from tests.deploy.policies import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (FOLDER / "overlays").iterdir())
VERSIONS = ["1.31", "1.37"]
"""Of Kubernetes."""

needs_kubectl = pytest.mark.skipif(
    not in_ci() and not shutil.which("kubectl"),
    reason="no kubectl with Kustomize 5 (Debian's own is too old)",
)
Resource = dict[str, Any]


def build(folder: Path) -> list[Resource]:
    """The resources of a kustomization."""
    ended = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "", "kubectl warns of fields that are going away"
    return list(yaml.safe_load_all(ended.stdout))


def overlay_of(checkout: Path, name: str, *, mirror: bool = False) -> Path:
    """An overlay of the copy, with the mirror uncommented or not."""
    overlay = checkout / "deploy" / "kubernetes" / "overlays" / name
    if mirror:
        edit(
            overlay,
            "kustomization.yaml",
            {r"# (components:)": r"\1", r"#(   - \.\./\.\./components/mirror)": r"\1"},
        )
        edit(overlay, "settings.env", {r"# (LAUNCH_ENTITY|LAUNCH_WANDB_QUEUES)": r"\1"})
    return overlay


def edit(overlay: Path, name: str, changes: Mapping[str, str]) -> None:
    """Replace what stands at the start of a line; each change has to find one."""
    text = (overlay / name).read_text()
    for pattern, replacement in changes.items():
        text, count = re.subn(f"^{pattern}", replacement, text, flags=re.MULTILINE)
        assert count, f"{name} has nothing like {pattern}"
    (overlay / name).write_text(text)


def of_kind(resources: list[Resource], kind: str, name: str = "launch-worker") -> Resource:
    """The one resource of that kind and name; a ConfigMap's ends with a hash."""
    (found,) = [
        resource
        for resource in resources
        if resource["kind"] == kind and re.fullmatch(rf"{name}(-\w{{10}})?", resource["metadata"]["name"])
    ]
    return found


def pod_of(resources: list[Resource], name: str = "launch-worker") -> Resource:
    """The template of a Deployment's pods."""
    pod: Resource = of_kind(resources, "Deployment", name)["spec"]["template"]
    return pod


def containers_of(pod: Resource) -> list[Resource]:
    """All containers of a pod, its sidecars last."""
    return [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]


def validate(resources: list[Resource], tmp_path: Path) -> None:
    """Against the schemas of Kubernetes, where unknown fields are errors."""
    file = tmp_path / "resources.yaml"
    file.write_text(yaml.safe_dump_all(resources))
    command = Path(sys.executable).with_name("kubernetes-validate")
    for version in VERSIONS:
        ended = subprocess.run(
            [command, "--strict", "--kubernetes-version", version, file],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
