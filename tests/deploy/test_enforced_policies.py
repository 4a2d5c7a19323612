"""Each policy lets the worker do its work, and without any one of its actions some of that work fails."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from tests.deploy.calls import DOCKER_PUSH
from tests.deploy.enforcement import Denial, Role, enforced, new_role
from tests.deploy.policies import ROOT, actions, policy, policy_files, resources, without
from tests.deploy.probes import BASE_REPOSITORY, DEPLOYMENT, NOT_TRIED, OF_STATEMENT, PROBES, Field
from tests.e2e.bench import open_clients
from worker.clients.aws import aws_clients
from worker.clients.docker import docker_engine
from worker.errors import SettingsError, WorkerError
from worker.local.aws import ACCOUNT
from worker.local.stack import running_stack

if TYPE_CHECKING:
    from types_aiobotocore_sagemaker.type_defs import TagTypeDef

POLICIES = [
    "worker.json",
    "worker-builds.json",
    "mirror.json",
    "sender.json",
    "operator.json",
    "assumed-role.json",
]
OPTIONAL = policy_files("optional")
BASE_IMAGES = "optional/base-images.json"
WORKER_IMAGE = "optional/worker-image.json"
PULLING = (BASE_IMAGES, WORKER_IMAGE)
"""Tried on the one repository of the registry that has an image to pull."""
DOCUMENT = (ROOT / "docs" / "iam.md").read_text()
ADVICE = r"IAM policy|role needs|must be allowed|allow the worker to (push|pull)|that the worker may pull it"
ON_DOCKER = {*DOCKER_PUSH, "ecr:GetDownloadUrlForLayer"}
TRIED = [
    pytest.param(
        *(name, statement["Sid"], action, resource),
        id=f"{name}-{statement['Sid']}-{action}{'-' * position}",
        marks=[pytest.mark.docker] if action in ON_DOCKER or name in PULLING else [],
    )
    for name in [*POLICIES, *OPTIONAL]
    for statement in policy(name)["Statement"]
    for action in statement["Action"]
    for position, resource in enumerate(resources(statement))
    if action not in NOT_TRIED
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def field() -> AsyncIterator[tuple[Field, Role]]:
    async with running_stack(executor="process", stop_grace=1) as services, open_clients(services) as admin:
        session, url = services.aws.session(), services.aws_endpoint
        async with (
            session.client("secretsmanager", endpoint_url=url) as secrets,
            session.client("ssm", endpoint_url=url) as parameters,
        ):
            await secrets.create_secret(Name="wandb-key", SecretString="a" * 40)
            await parameters.put_parameter(Name="/wandb/key", Value="a" * 40, Type="SecureString")
        role = new_role("worker", policy("worker.json"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**services.environment, **role.environment}.items():
                patch.setenv(name, value)
            async with aws_clients() as aws, contextlib.AsyncExitStack() as stack:
                docker = await stack.enter_async_context(docker_engine()) if services.docker else None
                yield Field(services, aws, admin, docker), role


@pytest.fixture
def refused() -> Iterator[list[Denial]]:
    with enforced() as denials:
        yield denials


def tried(name: str) -> dict[str, Any]:
    """A policy, and what else is needed to do what it is for: base images are pulled by a worker that builds. Their
    account is the local one here, for there is no other."""
    if name == WORKER_IMAGE:
        return policy(name, WORKER_REPOSITORY=BASE_REPOSITORY)
    if name != BASE_IMAGES:
        return policy(name)
    own = policy("worker-builds.json")
    bases = policy(name, BASE_ACCOUNT=ACCOUNT, BASE_REPOSITORY=BASE_REPOSITORY)
    return {**own, "Statement": own["Statement"] + bases["Statement"]}


@pytest.mark.parametrize(("name", "sid", "action", "resource"), TRIED)
@pytest.mark.asyncio(loop_scope="module")
async def test_no_action_can_be_taken_away(
    field: tuple[Field, Role], refused: list[Denial], *, name: str, sid: str, action: str, resource: str
) -> None:
    on, role = field
    document = tried(name)
    probe = OF_STATEMENT.get((name, sid), {}).get(action, PROBES[action])
    role.allow(document)
    await probe(on)
    assert refused == []
    role.allow(without(document, action, sid, resource if name not in PULLING else ""))
    with pytest.raises(WorkerError, match=ADVICE) as failed:
        await probe(on)
    assert refused[-1].permission.action == action
    if said := re.search(rf"^\| `{action}`.*\| exit code (\d) \|$", DOCUMENT, re.MULTILINE):
        assert said[1] == ("2" if failed.errisinstance(SettingsError) else "1")


@pytest.mark.parametrize(
    ("action", "changes"),
    [
        ("iam:PassRole", {"RoleArn": "arn:aws:iam::123456789012:role/admin"}),
        ("sagemaker:StopTrainingJob", {"Tags": [{"Key": "LaunchWorker", "Value": "somebody else's"}]}),
        ("sagemaker:StopTrainingJob", {"Tags": []}),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_not_the_workers_is_out_of_its_reach(
    field: tuple[Field, Role], refused: list[Denial], action: str, changes: dict[str, object]
) -> None:
    on, role = field
    role.allow(policy("worker.json"))
    with pytest.raises(WorkerError, match="IAM policy"):
        if action == "iam:PassRole":
            await on.sagemaker.create_or_adopt(on.job_request(**changes))
        else:
            await on.sagemaker.stop(await on.a_job(**changes))
    assert refused[-1].permission.action == action


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_is_tagged_as_it_is_made_and_never_later(
    field: tuple[Field, Role], refused: list[Denial]
) -> None:
    """Else a worker could tag somebody else's job as its own, and stop it then."""
    on, role = field
    role.allow(policy("worker.json"))
    tags: list[TagTypeDef] = [{"Key": "LaunchWorker", "Value": DEPLOYMENT}]
    await on.sagemaker.create_or_adopt(on.job_request(Tags=tags))
    assert refused == []
    foreign = await on.admin.sagemaker.describe_training_job(TrainingJobName=await on.a_job(Tags=[]))
    with pytest.raises(ClientError, match="not authorized"):
        await on.aws.sagemaker.add_tags(ResourceArn=foreign["TrainingJobArn"], Tags=tags)
    assert refused[-1].permission.action == "sagemaker:AddTags"


def test_every_action_is_tried_or_the_document_says_why_not() -> None:
    everything = {action for name in [*POLICIES, *OPTIONAL] for action in actions(policy(name))}
    assert everything == {*PROBES, *NOT_TRIED}
    section = DOCUMENT.partition("## What cannot be tried here")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+:\w+)`", section)) == NOT_TRIED
