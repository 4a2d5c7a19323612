"""deploy/ec2: user data that is a script with the unit in it, and a unit that lets the worker drain."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy import user_data
from tests.deploy.policies import ROOT
from tests.deploy.template import load

FOLDER = ROOT / "deploy" / "ec2"
UNTIL_UNITS = (
    "systemctl enable --now docker",
    "install -d -m 0700 -o 10001 -g 10001 /var/lib/launch-worker /var/lib/launch-work",
    "systemctl daemon-reload",
)
"""Commands between the packages and the units."""


def _rendered() -> str:
    return subprocess.run([FOLDER / "render"], capture_output=True, text=True, check=True).stdout


def test_the_user_data_is_a_script_with_unit_and_firewall_in_it(tmp_path: Path) -> None:
    rendered = _rendered()
    for unit in ("launch-worker.service", "launch-mirror.service"):
        assert (FOLDER / unit).read_text() in rendered
    assert (ROOT / "deploy" / "block-build-metadata").read_text() in rendered
    assert not re.search(r"^@", rendered, re.MULTILINE)
    assert len(rendered) < 16_384, "EC2 takes no more"
    assert user_data.run(rendered, tmp_path) == [
        "dnf install -y docker awscli-2 iptables-nft",
        *UNTIL_UNITS,
        "systemctl enable --now launch-worker",
    ]
    firewall = tmp_path / "usr" / "local" / "sbin" / "block-build-metadata"
    assert firewall.read_text() == (ROOT / "deploy" / "block-build-metadata").read_text()


@pytest.mark.parametrize("client", ["", "docker-cli"])
def test_debian_gets_a_docker_client_and_a_mirror_if_it_is_wanted(tmp_path: Path, client: str) -> None:
    """From Debian 13 on docker.io is the daemon alone."""
    given = {"MIRROR_QUEUES": "sagemaker,spot", "ENTITY": "acme", "BUILDS": "yes"}
    text = _rendered()
    for name, value in given.items():
        text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, count=1, flags=re.MULTILINE)
    names = f"docker-cli-foo\n{client}\n"
    calls = user_data.run(text, tmp_path, prints={"apt-cache": names}, absent="dnf")
    packages = " ".join(["docker.io", *([client] if client else []), "awscli", "iptables"])
    assert calls == [
        "apt-get update",
        f"apt-get install -y --no-install-recommends {packages}",
        *UNTIL_UNITS,
        "systemctl enable --now launch-worker launch-mirror",
    ]
    settings = (tmp_path / "etc" / "launch-mirror.env").read_text()
    assert settings == "LAUNCH_ENTITY=acme\nLAUNCH_WANDB_QUEUES=sagemaker,spot\n"
    group = (tmp_path / "etc").stat().st_gid
    assert f"--group-add={group}\n" in (tmp_path / "etc" / "default" / "launch-worker").read_text()


def test_the_settings_that_it_writes_exist() -> None:
    known = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"\b(LAUNCH_[A-Z_]+)=", _rendered()))
    wanted = {
        "LAUNCH_QUEUE_URL",
        "LAUNCH_LEDGER",
        "LAUNCH_DEPLOYMENT",
        "LAUNCH_REGISTRY",
        "LAUNCH_WANDB_QUEUES",
    }
    assert wanted <= named
    assert [name for name in named if f"#{name}=" not in known] == []


def test_the_ledger_outlives_the_instance() -> None:
    """base.yaml has made that table, and its alarm waits for writes to it."""
    settings = (FOLDER / "user-data.sh").read_text()
    assert re.search(r"^LEDGER=dynamodb://launch-ledger$", settings, re.MULTILINE)
    base = load(ROOT / "deploy" / "cloudformation" / "base.yaml")
    assert base["Resources"]["Ledger"]["Properties"]["TableName"] == {"Fn::Sub": "${Name}-ledger"}
    assert base["Parameters"]["Name"]["Default"] == "launch"
    assert base["Parameters"]["LedgerOn"]["Default"] == "dynamodb"


def test_the_page_starts_an_instance_of_each_kind() -> None:
    """One for builds with a disk for them: the machine image brings 8 GiB. The profile is the stack's."""
    page = (ROOT / "docs" / "deploy.md").read_text().partition("## EC2")[2].partition("\n## ")[0]
    assert page.index("WorkerImageRepositoryArn") < page.index("aws ec2 run-instances")
    (disk,) = re.findall(r"--block-device-mappings '(.+?)'", page)
    (mapping,) = json.loads(disk)
    assert mapping["Ebs"]["VolumeSize"] >= 100
    assert "--instance-type m6i.large" in page
    base = load(ROOT / "deploy" / "cloudformation" / "base.yaml")
    profile = base["Resources"]["InstanceProfile"]["Properties"]["InstanceProfileName"]["Fn::Sub"]
    made = profile.replace("${Name}", "launch").replace("${AWS::Region}", "eu-west-1")
    assert f"--iam-instance-profile Name={made}" in page


@pytest.mark.parametrize("name", ["launch-worker", "launch-mirror"])
def test_the_unit_waits_for_its_process_to_drain(name: str) -> None:
    unit, settings = (FOLDER / f"{name}.service").read_text(), (FOLDER / "user-data.sh").read_text()
    grace = int(re.findall(r"LAUNCH_SHUTDOWN_GRACE=(\d+)s", settings)[0])
    docker = int(re.findall(r"docker stop --time (\d+)", unit)[0])
    systemd = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    assert grace < docker < systemd
    assert "RestartPreventExitStatus=2" in unit


@pytest.mark.parametrize("name", ["launch-worker", "launch-mirror"])
def test_the_log_is_in_the_journal_only(name: str) -> None:
    """Docker's own file of it has no bound, and the disk of a machine image has 8 GiB."""
    assert f"docker run --rm --name {name} --log-driver none " in (FOLDER / f"{name}.service").read_text()


def test_the_instances_jobs_have_the_stacks_tag() -> None:
    """Which the worker's role may stop, and no others."""
    base = load(ROOT / "deploy" / "cloudformation" / "base.yaml")
    settings = (FOLDER / "user-data.sh").read_text()
    (deployment,) = re.findall(r"^DEPLOYMENT=(\w+)", settings, re.MULTILINE)
    assert deployment == base["Parameters"]["Deployment"]["Default"]
    assert "\nLAUNCH_DEPLOYMENT=$DEPLOYMENT\n" in settings
