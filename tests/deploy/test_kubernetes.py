"""What `kubectl kustomize` makes of deploy/kubernetes: valid, safe where it can be, and of settings that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import in_ci
from tests.deploy.policies import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = [FOLDER / "base", *sorted((FOLDER / "overlays").iterdir())]


pytestmark = pytest.mark.skipif(
    not in_ci() and not shutil.which("kubectl"),
    reason="no kubectl with Kustomize 5 (Debian's own is too old)",
)
Resource = dict[str, Any]


@cache
def build(folder: Path) -> list[Resource]:
    """The resources of a kustomization."""
    ended = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "", "kubectl warns of fields that are going away"
    return list(yaml.safe_load_all(ended.stdout))


def _of_kind(resources: list[Resource], kind: str) -> Resource:
    (found,) = [resource for resource in resources if resource["kind"] == kind]
    return found


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_resources_are_valid(version: str, tmp_path: Path) -> None:
    """Against the schemas of Kubernetes, where unknown fields are errors."""
    files = [tmp_path / f"{folder.name}.yaml" for folder in OVERLAYS]
    for file, folder in zip(files, OVERLAYS, strict=True):
        file.write_text(yaml.safe_dump_all(build(folder)))
    command = Path(sys.executable).with_name("kubernetes-validate")
    ended = subprocess.run(
        [command, "--strict", "--kubernetes-version", version, *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_pods_have_no_rights_they_do_not_need_and_time_to_drain(folder: Path) -> None:
    resources = build(folder)
    deployment = _of_kind(resources, "Deployment")["spec"]
    pod = deployment["template"]["spec"]
    worker = next(container for container in pod["containers"] if container["name"] == "worker")
    assert pod["securityContext"]["runAsNonRoot"]
    assert worker["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    settings = _of_kind(resources, "ConfigMap")["data"]
    grace = int(settings["LAUNCH_SHUTDOWN_GRACE"].removesuffix("s"))
    assert grace < pod["terminationGracePeriodSeconds"]
    known = (ROOT / ".env.example").read_text()
    assert [name for name in settings if f"#{name}=" not in known] in ([], ["DOCKER_HOST"])
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert _of_kind(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    probes = {
        worker[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")
    }
    assert probes == {"/healthz", "/readyz"}


def test_only_the_daemon_of_builds_is_privileged() -> None:
    privileged = {
        (folder.name, container["name"])
        for folder in OVERLAYS
        for pod in [_of_kind(build(folder), "Deployment")["spec"]["template"]["spec"]]
        for container in [*pod["containers"], *pod.get("initContainers", ())]
        if container.get("securityContext", {}).get("privileged")
    }
    assert privileged == {("builds", "dockerd")}


def test_the_daemon_of_builds_is_reached_by_its_socket_only() -> None:
    """Without arguments the entry point of docker's image opens it to the network, without a login."""
    pod = _of_kind(build(FOLDER / "overlays" / "builds"), "Deployment")["spec"]["template"]["spec"]
    daemon = next(container for container in pod["initContainers"] if container["name"] == "dockerd")
    assert daemon["args"] == ["dockerd", "--host=unix:///run/user/1000/docker.sock"]


def test_no_secret_stands_in_them() -> None:
    for path in FOLDER.rglob("*.yaml"):
        assert not re.search(r"WANDB_API_KEY: |kind: Secret", path.read_text())
