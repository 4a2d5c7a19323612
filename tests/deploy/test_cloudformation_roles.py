"""Roles of base.yaml: no more and no fewer rights than the policies of deploy/iam, and whom they trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.deploy.policies import policy, resources
from tests.deploy.template import BASE, WORKER_IMAGE, conditions_of, load, made_of, named, resolved

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
OTHER_ROLES = ["arn:aws:iam::123456789012:role/vision", "arn:aws:iam::123456789012:role/speech"]


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


def test_jobs_may_have_other_roles_than_the_stacks() -> None:
    (wanted,) = [it for it in policy("worker.json")["Statement"] if it["Sid"] == "PassRolesOfJobs"]
    given = _by_sid(_policies("WorkerRole", OtherJobRoleArns=",".join(OTHER_ROLES)))
    assert given["PassOtherRolesOfJobs"] == {**wanted, "Sid": "PassOtherRolesOfJobs", "Resource": OTHER_ROLES}
    assert "PassOtherRolesOfJobs" not in _by_sid(_policies("WorkerRole"))


def test_builds_may_use_base_images_of_others() -> None:
    (wanted,) = policy("optional/base-images.json")["Statement"]
    given = _by_sid(_policies("WorkerRole", BaseImageRepositoryArns=f"{READY},{WORKER_IMAGE}"))
    assert given["PullBaseImages"] == {**wanted, "Resource": [READY, WORKER_IMAGE]}
    assert wanted["Resource"] == READY
    for parameters in ({}, {"Builds": "false", "BaseImageRepositoryArns": READY}):
        assert "PullBaseImages" not in _by_sid(_policies("WorkerRole", **parameters))


def test_jobs_may_be_in_a_vpc() -> None:
    wanted = policy("optional/job-vpc.json")["Statement"]
    without = _policies("JobRole")
    assert [it for it in _policies("JobRole", JobsInVpc="true") if it not in without] == wanted


@pytest.mark.parametrize("daemon", ["", "arn:aws:ecr:us-east-1:123456789012:repository/dind"])
def test_instances_for_builds_pull_both_images_of_their_task(daemon: str) -> None:
    template = load(BASE.parent / "builds.yaml")
    names = named(template, ImageRepositoryArn=WORKER_IMAGE, DaemonImageRepositoryArn=daemon)
    (start,) = template["Resources"]["ExecutionRole"]["Properties"]["Policies"]
    statements = _by_sid(start["PolicyDocument"]["Statement"])
    pulled = resolved(statements["PullTheTasksImages"], names, conditions_of(template, names))["Resource"]
    assert pulled == [WORKER_IMAGE, *([daemon] if daemon else [])]
