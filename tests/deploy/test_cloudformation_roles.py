"""Roles of base.yaml: no more and no fewer rights than the policies of deploy/iam, and whom they trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.deploy.policies import policy, resources
from tests.deploy.template import WORKER_IMAGE, made_of

VALUES = {
    "QUEUE": "launch-launches",
    "DEAD_LETTER_QUEUE": "launch-launches-dlq",
    "TABLE": "launch-ledger",
    "REPOSITORY": "launch-images",
    "JOB_ROLE": "launch-training-us-east-1",
    "SOURCE_BUCKET": "launch-code",
}
READY = "arn:aws:ecr:us-east-1:763104351884:repository/pytorch-training"
BUILT = "arn:aws:ecr:us-east-1:123456789012:repository/launch-images"
OWN = "arn:aws:ecr:us-east-1:123456789012:repository/*"


def _policies(role: str, **parameters: str) -> list[dict[str, Any]]:
    """The statements of a role of base.yaml, in order."""
    made = made_of(**parameters)
    inline = [given["PolicyDocument"] for given in made[role]["Properties"]["Policies"]]
    for resource in made.values():
        if resource["Type"] == "AWS::IAM::Policy" and role in resource["Properties"]["Roles"]:
            inline.append(resource["Properties"]["PolicyDocument"])
    return [statement for document in inline for statement in document["Statement"]]


def _by_sid(statements: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({statement["Sid"] for statement in statements}) == len(statements)
    return {statement["Sid"]: statement for statement in statements}


def test_the_workers_role_is_the_policy() -> None:
    wanted = policy("worker-builds.json", **VALUES)["Statement"]
    wanted += policy("optional/wandb-secret.json")["Statement"]
    assert _by_sid(_policies("WorkerRole")) == _by_sid(wanted)


def test_the_worker_of_an_instance_may_pull_its_image_and_mirror() -> None:
    """There everything runs with one role; on ECS and EKS others pull the image, and the mirror has its own role."""
    wanted = policy("worker-builds.json", **VALUES)["Statement"]
    for name in ("optional/wandb-secret.json", "optional/worker-image.json", "mirror.json"):
        wanted += policy(name, **VALUES)["Statement"]
    given = _policies("WorkerRole", WorkerOn="ec2", WorkerImageRepositoryArn=WORKER_IMAGE)
    assert _by_sid(given) == _by_sid(wanted)
    assert "MirrorRole" not in made_of(WorkerOn="ec2", WorkerImageRepositoryArn=WORKER_IMAGE)


def test_the_mirrors_role_is_the_policy() -> None:
    wanted = policy("mirror.json", **VALUES)["Statement"] + policy("optional/wandb-secret.json")["Statement"]
    assert _by_sid(_policies("MirrorRole")) == _by_sid(wanted)
    assert not {"MirrorRole", "MirrorPolicy"} & made_of(Mirror="false").keys()


def test_a_key_of_ones_own_can_be_used() -> None:
    (wanted,) = policy("optional/decrypt.json")["Statement"]
    for role in ("WorkerRole", "MirrorRole"):
        assert wanted in _policies(role, WandbSecretKeyArn=wanted["Resource"])


@pytest.mark.parametrize(
    ("where", "file"), [("ecs", "ecs.json"), ("ec2", "ec2.json"), ("eks", "eks-pod-identity.json")]
)
def test_roles_trust_whom_the_files_trust(where: str, file: str) -> None:
    made = made_of(WorkerOn=where, WorkerImageRepositoryArn=WORKER_IMAGE)
    wanted = {"WorkerRole": file, "JobRole": "sagemaker.json"} | (
        {} if where == "ec2" else {"MirrorRole": file}
    )
    assert {
        name: item["Properties"]["AssumeRolePolicyDocument"]
        for name, item in made.items()
        if item["Type"] == "AWS::IAM::Role"
    } == {name: policy(f"trust/{trusted}") for name, trusted in wanted.items()}


def test_the_jobs_role_is_the_policy() -> None:
    assert _by_sid(_policies("JobRole")) == _by_sid(policy("execution-role.json", **VALUES)["Statement"])


@pytest.mark.parametrize(
    ("parameters", "repositories"),
    [
        ({}, [BUILT]),
        ({"ReadyImageRepositoryArns": f"{READY},{WORKER_IMAGE}"}, [BUILT, READY, WORKER_IMAGE]),
        ({"Builds": "false", "ReadyImageRepositoryArns": READY}, [READY]),
        ({"Builds": "false"}, [OWN]),
    ],
)
def test_jobs_may_pull_what_they_run(parameters: Mapping[str, str], repositories: list[str]) -> None:
    pulling = [
        given for given in _policies("JobRole", **parameters) if "ecr:BatchGetImage" in given["Action"]
    ]
    given = [resource for statement in pulling for resource in resources(statement)]
    assert given == repositories
    assert all(statement["Action"] == pulling[0]["Action"] for statement in pulling)
