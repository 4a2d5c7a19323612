"""A worker in the place of W&B's agent: its launch-config.yaml, a key that is not in the environment, another role."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.deploy.enforcement import new_role
from tests.e2e.audit import audit
from tests.e2e.bench import Bench
from tests.e2e.launches import numbered
from worker.local.aws import ACCOUNT
from worker.local.stack import WANDB_KEY

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

CONFIG = """\
entity: acme
queues: [vision]
max_jobs: 3
verbosity: 2
environment: {type: aws, region: eu-west-1}
builder: {type: noop}
runner: {type: sagemaker}
"""
NAME = "sagemaker-launcher"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/{NAME}"


def write_config(home: Path) -> Path:
    place = home / ".config" / "wandb" / "launch-config.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(CONFIG)
    return place


def write_netrc(home: Path, machine: str) -> None:
    file = home / ".netrc"
    file.write_text(f"machine {machine}\n  login user\n  password {WANDB_KEY}\n")
    file.chmod(0o600)


def only_the_other_role_may_run_jobs(bench: Bench) -> None:
    """As docs/iam.md has it: with LAUNCH_ASSUME_ROLE the rights on jobs move."""
    roles = bench.roles
    assert roles is not None
    roles.values |= {"TARGET_ACCOUNT": ACCOUNT, "TARGET_ROLE": NAME}
    of_jobs = roles.joined("assumed-role.json")
    new_role(NAME, of_jobs)
    own = roles.joined("worker.json", "optional/assume-role.json")
    kept = [statement for statement in own["Statement"] if statement not in of_jobs["Statement"]]
    roles.document = {**own, "Statement": kept}


async def test_an_agents_machine_is_taken_as_it_is(bench: Bench) -> None:
    """Its configuration, its netrc, SageMaker as another role, and no key in containers."""
    place = write_config(bench.folder)
    write_netrc(bench.folder, bench.services.wandb.base_url.partition("://")[2])
    bench.environment["WANDB_API_KEY"] = ""
    only_the_other_role_may_run_jobs(bench)
    worker = await bench.started(assume_role=ROLE, container_api_key="none")
    (read,) = worker.events("launch_config_read")
    assert read["file"] == str(place)
    (ignored,) = worker.events("launch_config_ignored")
    assert ignored["keys"] == ["runner"]
    assert worker.events("worker_started")[0]["region"] == "us-east-1", "AWS_REGION of the environment wins"
    case = bench.launch(
        ["the key is hidden"], tail='test -z "$WANDB_API_KEY" && test "$WANDB_RUN_ID" || exit 3'
    )
    await bench.send(case)
    await audit(bench, case)
    described = await bench.clients.sagemaker.describe_training_job(TrainingJobName=case.job_name)
    assert "WANDB_API_KEY" not in described["Environment"]


async def test_the_key_comes_from_secrets_manager(bench: Bench) -> None:
    session, url = bench.services.aws.session(), bench.services.aws_endpoint
    async with session.client("secretsmanager", endpoint_url=url) as secrets:
        secret = json.dumps({"api_key": WANDB_KEY})
        made = await secrets.create_secret(Name=f"wandb/{bench.deployment}", SecretString=secret)
    assert bench.roles is not None
    bench.roles.values["SECRET"] = f"wandb/{bench.deployment}"
    bench.roles.worker += ("optional/wandb-secret.json",)
    bench.environment["WANDB_API_KEY"] = ""
    await bench.started(wandb_api_key_source=f"{made['ARN']}#api_key")
    case = bench.launch(numbered(2), tail='test "${#WANDB_API_KEY}" = 40')
    await bench.send(case)
    await audit(bench, case)
