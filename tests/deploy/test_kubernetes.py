"""What `kubectl kustomize` makes of deploy/kubernetes: valid, safe where it can be, and of settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.kustomize import (
    FOLDER,
    OVERLAYS,
    Resource,
    build,
    containers_of,
    edit,
    needs_kubectl,
    of_kind,
    overlay_of,
    pod_of,
    validate,
)
from tests.deploy.policies import ROOT

pytestmark = needs_kubectl

SAFE = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.mark.parametrize("mirror", [False, True], ids=["alone", "mirror"])
@pytest.mark.parametrize("name", OVERLAYS)
def test_resources_are_valid(checkout: Path, tmp_path: Path, name: str, mirror: bool) -> None:
    validate(build(overlay_of(checkout, name, mirror=mirror)), tmp_path)


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_have_no_rights_they_do_not_need_and_time_to_drain(checkout: Path, name: str) -> None:
    resources = build(overlay_of(checkout, name, mirror=True))
    for workload, container in (("launch-worker", "worker"), ("launch-worker-mirror", "mirror")):
        deployment = of_kind(resources, "Deployment", workload)["spec"]
        pod = deployment["template"]["spec"]
        (main,) = [found for found in pod["containers"] if found["name"] == container]
        assert pod["securityContext"]["runAsNonRoot"]
        assert main["securityContext"] == SAFE
        assert pod["serviceAccountName"] == workload
        assert not pod["automountServiceAccountToken"]
        assert not of_kind(resources, "ServiceAccount", workload)["automountServiceAccountToken"]
        labels = deployment["template"]["metadata"]["labels"]
        assert deployment["selector"]["matchLabels"] == labels
        assert (
            of_kind(resources, "PodDisruptionBudget", workload)["spec"]["selector"]["matchLabels"] == labels
        )
        probes = {
            main[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")
        }
        assert probes == {"/healthz", "/readyz"}
    settings = of_kind(resources, "ConfigMap")["data"]
    grace = int(settings["LAUNCH_SHUTDOWN_GRACE"].removesuffix("s"))
    assert grace < pod_of(resources)["spec"]["terminationGracePeriodSeconds"]
    known = (ROOT / ".env.example").read_text()
    assert [name for name in settings if f"#{name}=" not in known] in ([], ["DOCKER_HOST"])


def test_only_the_daemon_of_builds_is_privileged(checkout: Path) -> None:
    privileged = {
        (name, container["name"])
        for name in OVERLAYS
        for resource in build(overlay_of(checkout, name, mirror=True))
        if resource["kind"] == "Deployment"
        for container in containers_of(resource["spec"]["template"])
        if container.get("securityContext", {}).get("privileged")
    }
    assert privileged == {("builds", "dockerd")}


def test_the_daemon_of_builds_is_reached_by_its_socket_only(checkout: Path) -> None:
    """Without arguments the entry point of docker's image opens it to the network, without a login."""
    assert _daemon(checkout)["args"] == ["dockerd", "--host=unix:///run/user/1000/docker.sock"]


def test_the_daemon_of_builds_gets_no_role_and_shares_the_socket_only(checkout: Path) -> None:
    pod = pod_of(build(overlay_of(checkout, "builds")))
    assert pod["metadata"]["annotations"]["eks.amazonaws.com/skip-containers"] == "dockerd"
    worker, daemon = containers_of(pod)
    shared = {mount["name"] for mount in worker["volumeMounts"]} & {
        mount["name"] for mount in daemon["volumeMounts"]
    }
    assert shared == {"docker"}
    assert "envFrom" not in daemon
    assert "shareProcessNamespace" not in pod["spec"]
    assert daemon["securityContext"]["readOnlyRootFilesystem"]


def test_layers_lie_on_a_volume_that_is_emptied_before_the_kubelet_evicts(checkout: Path) -> None:
    """The kubelet evicts at 10 % of free disk; the overlay asks for nodes with 100 GiB."""
    resources = build(overlay_of(checkout, "builds"))
    daemon = _daemon(checkout)
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod_of(resources)["spec"]["volumes"]}
    home = next(variable["value"] for variable in daemon["env"] if variable["name"] == "HOME")
    (layers,) = [mount["name"] for mount in daemon["volumeMounts"] if mount["mountPath"] == home]
    assert volumes[layers]["sizeLimit"] == daemon["resources"]["requests"]["ephemeral-storage"] == "80Gi"
    free_when_full = 100 - 80
    assert int(of_kind(resources, "ConfigMap")["data"]["LAUNCH_BUILD_LOW_WATER"]) >= free_when_full << 30


def test_the_daemon_of_builds_has_a_version(checkout: Path) -> None:
    assert re.fullmatch(r"docker:\d+\.\d+\.\d+-dind-rootless", _daemon(checkout)["image"])


def _daemon(checkout: Path) -> Resource:
    containers = containers_of(pod_of(build(overlay_of(checkout, "builds"))))
    return next(container for container in containers if container["name"] == "dockerd")


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_changed_setting_replaces_the_pods(checkout: Path, name: str) -> None:
    """Kubernetes restarts nothing for a ConfigMap of the same name. The same settings keep their name: a second `apply`
    changes nothing."""
    overlay = overlay_of(checkout, name, mirror=True)
    before, again = build(overlay), build(overlay)
    assert before == again
    edit(overlay, "settings.env", {"AWS_REGION=.*": "AWS_REGION=us-east-2"})
    after = build(overlay)
    for workload in ("launch-worker", "launch-worker-mirror"):
        names = []
        for resources in (before, after):
            (source,) = pod_of(resources, workload)["spec"]["containers"][0]["envFrom"]
            names.append(source["configMapRef"]["name"])
            assert names[-1] == of_kind(resources, "ConfigMap")["metadata"]["name"]
        assert len(set(names)) == 2


def test_the_mirror_leaves_the_worker_as_it_is(checkout: Path) -> None:
    without, mirrored = (build(overlay_of(checkout, "builds", mirror=mirror)) for mirror in (False, True))
    added = [resource for resource in mirrored if resource["metadata"]["name"] == "launch-worker-mirror"]
    assert sorted(resource["kind"] for resource in added) == [
        "Deployment",
        "PodDisruptionBudget",
        "ServiceAccount",
    ]
    assert {resource["metadata"]["namespace"] for resource in added} == {"launch"}
    (container,) = containers_of(pod_of(mirrored, "launch-worker-mirror"))
    assert container["args"] == ["mirror"]
    assert container["image"] == pod_of(mirrored)["spec"]["containers"][0]["image"]
    for kind in ("PodDisruptionBudget", "ServiceAccount", "Namespace"):
        name = "launch" if kind == "Namespace" else "launch-worker"
        assert of_kind(without, kind, name) == of_kind(mirrored, kind, name)
    assert pod_of(mirrored)["metadata"] == pod_of(without)["metadata"]


def test_no_secret_stands_in_them() -> None:
    for path in (*FOLDER.rglob("*.yaml"), *FOLDER.rglob("*.env")):
        assert not re.search(r"WANDB_API_KEY[:=]|kind: Secret", path.read_text())


def test_nothing_has_to_be_edited_in_the_base() -> None:
    for path in (*(FOLDER / "base").iterdir(), *(FOLDER / "components").rglob("*.yaml")):
        assert "123456789012" not in path.read_text(), path
