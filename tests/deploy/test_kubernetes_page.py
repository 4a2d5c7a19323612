"""docs/deploy.md, EKS, done as it says: its commands and values lead to what Kubernetes takes, without anything of the
example."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ENVIRON
from tests.deploy.kustomize import (
    FOLDER,
    OVERLAYS,
    Resource,
    build,
    needs_kubectl,
    of_kind,
    overlay_of,
    pod_of,
    validate,
)
from tests.deploy.page import blocks_of, section, stand_in, wrong_options
from tests.deploy.policies import IAM, ROOT
from tests.deploy.template import load

pytestmark = needs_kubectl

SECTION = section("EKS")
VALUES = {
    "newName": "111122223333.dkr.ecr.us-east-2.amazonaws.com/worker",
    "newTag": '"7"',
    "AWS_REGION": "us-east-2",
    "LAUNCH_QUEUE_URL": "https://sqs.us-east-2.amazonaws.com/111122223333/launch-launches",
    "LAUNCH_LEDGER": "dynamodb://launch-ledger",
    "LAUNCH_DEPLOYMENT": "blue",
    "LAUNCH_WANDB_API_KEY_SOURCE": "secretsmanager:arn:aws:secretsmanager:us-east-2:111122223333:secret:key-AbCdEf",
    "LAUNCH_REGISTRY": "111122223333.dkr.ecr.us-east-2.amazonaws.com/launch-images",
}
"""What somebody puts in, by the names that the page gives."""


def _table() -> dict[str, str]:
    """Name of a value → what the page says to put in."""
    rows = [re.fullmatch(r"\| (.+?) \| (.+) \|", line) for line in SECTION.splitlines()]
    return {
        name: row[2] for row in rows if row for name in re.findall(r"`(\w+)`", row[1]) if name != "builds"
    }


def test_the_page_names_each_value_and_where_it_comes_from() -> None:
    outputs = load(ROOT / "deploy" / "cloudformation" / "base.yaml")["Outputs"]
    names = {
        line.partition("=")[0]
        for overlay in OVERLAYS
        for line in (FOLDER / "overlays" / overlay / "settings.env").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    }
    table = _table()
    assert set(table) == names | {"newName", "newTag"} == set(VALUES)
    for name, source in table.items():
        for output in re.findall(r"output `(\w+)`", source):
            assert outputs[output]["Description"] == name
    assert set(re.findall(r"\$\(output (\w+)\)", SECTION)) <= set(outputs)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_commands_of_the_page_lead_to_running_pods(checkout: Path, tmp_path: Path, name: str) -> None:
    """Run as they stand there, but for `aws`, which is noted down, and for what asks a cluster."""
    worker, mirror = blocks_of("EKS")
    worker = worker.replace("overlays/ready-images", f"overlays/{name}")
    shell = _Shell(checkout, tmp_path)
    shell.run(worker, edits=[_edit_of(key, value) for key, value in VALUES.items()])
    for resource in (resources := shell.applied()):
        text = yaml.safe_dump(resource)
        assert not re.search("123456789012|eu-west-1", text), "something of the example is left"
    validate(resources, tmp_path)
    data = of_kind(resources, "ConfigMap")["data"]
    for key, value in VALUES.items():
        if key.isupper() and (key != "LAUNCH_REGISTRY" or name == "builds"):
            assert data[key] == value
    image = pod_of(resources)["spec"]["containers"][0]["image"]
    assert image == f"{VALUES['newName']}:7"

    shell.run(
        worker.partition("# The role")[0] + mirror,
        edits=["s|^# ?(components:)|\\1|", "s|^#( +- .*components/mirror)|\\1|", "s|^# (LAUNCH_\\w+=)|\\1|"],
    )
    validate(shell.applied(), tmp_path)
    accounts = {
        (resource["metadata"]["namespace"], resource["metadata"]["name"])
        for resource in shell.applied()
        if resource["kind"] == "ServiceAccount"
    }
    assert shell.associations() == dict(
        zip(sorted(accounts), ("WorkerRoleArn", "MirrorRoleArn"), strict=True)
    )


def _edit_of(key: str, value: str) -> str:
    """What sed does for somebody who edits one value. The overlay `builds` has a tag of docker's image as well."""
    where = "" if key.isupper() else "/- name: launch-worker$/,/newTag:/"
    return f"{where}s|^( *{key}[:=] ?).*|\\1{value}|"


class _Shell:
    """Runs blocks of the page in a copy of the checkout, with an `aws` and a `kubectl` that reach nobody."""

    def __init__(self, checkout: Path, tmp_path: Path) -> None:
        self._checkout = checkout
        self._bin, self._applied, self._calls = (tmp_path / name for name in ("bin", "applied.yaml", "calls"))
        self._bin.mkdir()
        self._edits = tmp_path / "edits.sed"
        describes, applies = "case $2 in describe-stacks)", "case $1$2 in apply-k)"
        value = r'''sed -E "s|.*OutputKey=='(\w+)'.*|the:\1|"'''
        stubs = {
            "aws": f'printf "%s\\n" "$*" >>{self._calls}; {describes} echo "$*" | {value} ;; esac',
            "kubectl": f"{applies} exec {shutil.which('kubectl')} kustomize $3 >{self._applied} ;; esac",
        }
        for name, text in stubs.items():
            stand_in(self._bin / name, text)

    def run(self, block: str, *, edits: list[str]) -> None:
        self._edits.write_text("\n".join(edits))
        environment = {
            "PATH": f"{self._bin}:{ENVIRON['PATH']}",
            "HOME": str(self._checkout),
            "EDITOR": f"sed -i -E -f {self._edits}",
        }
        ended = subprocess.run(
            ["sh", "-euc", block],
            cwd=self._checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def applied(self) -> list[Resource]:
        return list(yaml.safe_load_all(self._applied.read_text()))

    def associations(self) -> dict[tuple[str, str], str]:
        """(Namespace, service account) → the output that its role is; every call has to be one that AWS has."""
        found = {}
        for line in self._calls.read_text().splitlines():
            service, command, *rest = line.split(" ")
            given = dict(zip(rest[::2], rest[1::2], strict=True))
            assert all(option.startswith("--") for option in given), line
            assert wrong_options(service, command, (option[2:] for option in given)) == "", line
            assert all(given.values()), line
            if command == "create-pod-identity-association":
                who = given["--namespace"], given["--service-account"]
                found[who] = given["--role-arn"].removeprefix("the:")
        return found


def test_what_the_page_adds_for_irsa_is_the_role_of_the_workers_account(checkout: Path) -> None:
    (text,) = blocks_of("EKS", "yaml")
    overlay = overlay_of(checkout, "builds")
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    kustomization["patches"] += yaml.safe_load(text)["patches"]
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    resources = build(overlay)
    account = of_kind(resources, "ServiceAccount")["metadata"]
    assert account["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::ACCOUNT:role/ROLE"}
    subject = f"system:serviceaccount:${{NAMESPACE}}:{account['name']}"
    assert f'"{subject}"' in (IAM / "trust" / "eks-irsa.json").read_text()
