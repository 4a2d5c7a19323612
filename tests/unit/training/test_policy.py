"""Policy: an allow-list refuses what it does not name, and an empty one nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.launches import (
    ACCOUNT,
    IMAGE,
    SAGEMAKER,
    launch_of,
    message,
    plan_of,
    request_of,
    sagemaker_args,
)
from worker.errors import BadMessage
from worker.launch.message import ImageSource
from worker.settings import load_settings
from worker.training.allowed import policy_of
from worker.training.policy import POLICY_CODE, Policy, check_policy, instance_count

ROLES = ("arn:aws:iam::123456789012:role/sm-*",)
GROUPS = {
    "InstanceGroups": [
        {"InstanceType": "ml.m5.large", "InstanceCount": 2, "InstanceGroupName": "a"},
        {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 3, "InstanceGroupName": "b"},
    ],
    "VolumeSizeInGB": 10,
}
RULE = {"RuleConfigurationName": "r", "RuleEvaluatorImage": "other/rule", "InstanceType": "ml.p4d.24xlarge"}
OUTPUTS: dict[str, Any] = {
    "CheckpointConfig": {"S3Uri": "s3://acme-ckpt/a"},
    "TensorBoardOutputConfig": {"S3OutputPath": "s3://acme-tb"},
    "DebugHookConfig": {"S3OutputPath": "s3://acme-debug/a"},
    "ProfilerConfig": {"S3OutputPath": "s3://acme-profile/a"},
    "DebugRuleConfigurations": [RULE | {"S3OutputPath": "s3://acme-rule/a"}],
    "ProfilerRuleConfigurations": [RULE | {"S3OutputPath": "s3://acme-prule/a"}],
}
VPC = {"SecurityGroupIds": ["sg-1", "sg-2"], "Subnets": ["subnet-1"]}


def refused(policy: Policy, body: dict[str, Any], image: str | None = None) -> list[str]:
    problems = check_policy(request_of(body, image=image), launch_of(body), policy, region=ACCOUNT.region)
    assert all(problem.what and problem.remedy for problem in problems)
    return [problem.path.removeprefix(f"{SAGEMAKER}.") for problem in problems]


@pytest.mark.parametrize(
    ("policy", "arguments", "expected"),
    [
        (Policy(roles=ROLES), {}, []),
        (Policy(roles=ROLES), {"RoleArn": "admin"}, ["RoleArn"]),
        (Policy(roles=("*:role/SM-*",)), {}, ["RoleArn"]),
        (Policy(images=("123456789012.dkr.ecr.*/train:*",)), {}, []),
        (Policy(images=("other/*",)), {}, ["AlgorithmSpecification.TrainingImage"]),
        (
            Policy(images=("other/*",)),
            {"AlgorithmSpecification": {"AlgorithmName": "stranger"}},
            ["AlgorithmSpecification.AlgorithmName"],
        ),
        (
            Policy(images=("*/train:*",)),
            {"DebugRuleConfigurations": [RULE]},
            ["DebugRuleConfigurations[0].RuleEvaluatorImage"],
        ),
        (Policy(instance_types=("ml.m5.*", "ml.g5.*")), {}, []),
        (Policy(instance_types=("ml.g5.*",)), {}, ["ResourceConfig.InstanceType"]),
        (
            Policy(instance_types=("ml.m5.*",)),
            {"ResourceConfig": GROUPS},
            ["ResourceConfig.InstanceGroups[1].InstanceType"],
        ),
        (
            Policy(instance_types=("ml.m5.*",)),
            {"ProfilerRuleConfigurations": [RULE]},
            ["ProfilerRuleConfigurations[0].InstanceType"],
        ),
        (Policy(regions=("us-*",)), {}, []),
        (Policy(regions=("us-*",)), {"region": "us-east-1"}, []),
        (Policy(regions=("eu-*",)), {}, ["region"]),
        (Policy(regions=("eu-*",)), {"region": "us-east-1"}, ["region"]),
        (Policy(regions=("eu-*",)), {"Region": "us-east-1"}, ["region"]),
        (Policy(outputs=("s3://launch-dev/*",)), {}, []),
        (Policy(outputs=("s3://other/*",)), {}, ["OutputDataConfig.S3OutputPath"]),
        (Policy(outputs=("s3://launch-dev/*", "s3://acme-*")), OUTPUTS, []),
        (
            Policy(outputs=("s3://launch-dev/*",)),
            OUTPUTS,
            [
                "CheckpointConfig.S3Uri",
                "DebugHookConfig.S3OutputPath",
                "ProfilerConfig.S3OutputPath",
                "TensorBoardOutputConfig.S3OutputPath",
                "DebugRuleConfigurations[0].S3OutputPath",
                "ProfilerRuleConfigurations[0].S3OutputPath",
            ],
        ),
        (Policy(subnets=("subnet-1",), security_groups=("sg-*",)), {"VpcConfig": VPC}, []),
        (Policy(security_groups=("sg-1",)), {"VpcConfig": VPC}, ["VpcConfig.SecurityGroupIds[1]"]),
        (Policy(subnets=("subnet-2",)), {"VpcConfig": VPC}, ["VpcConfig.Subnets[0]"]),
        (Policy(subnets=("subnet-1",)), {}, ["VpcConfig.Subnets"]),
        (Policy(subnets=("subnet-1",)), {"VpcConfig": {"Subnets": 5}}, ["VpcConfig.Subnets"]),
        (Policy(environment=("HF_*",)), {"Environment": {"HF_HOME": "/hf"}}, []),
        (Policy(environment=("HF_*",)), {"environment": {"LD_PRELOAD": "x"}}, ["Environment.LD_PRELOAD"]),
        (Policy(max_instances=5), {"ResourceConfig": GROUPS}, []),
        (Policy(max_instances=4), {"ResourceConfig": GROUPS}, ["ResourceConfig.InstanceGroups"]),
        (Policy(max_runtime=3600), {}, []),
        (Policy(max_runtime=3599), {}, ["StoppingCondition.MaxRuntimeInSeconds"]),
        (Policy(max_runtime=3600), {"StoppingCondition": {}}, ["StoppingCondition.MaxRuntimeInSeconds"]),
    ],
)
def test_allow_lists(policy: Policy, arguments: dict[str, Any], expected: list[str]) -> None:
    assert refused(policy, message(sagemaker_args(**arguments))) == expected


def test_no_policy_allows_everything() -> None:
    arguments = sagemaker_args(ResourceConfig=GROUPS, VpcConfig=VPC, DebugRuleConfigurations=[RULE])
    assert refused(Policy(), message(arguments, overrides={"entry_point": ["sh"]})) == []


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("https://git.example.com/a.git", True),
        ("https://jdoe:x@git.example.com:8443/a.git", True),
        ("ssh://git@git.example.com/a.git", True),
        ("git@git.example.com:a/b.git", True),
        ("s3://bucket/key.zip", True),
        ("https://evil.com/git.example.com", False),
        ("https://git.example.com.evil.com/a", False),
        ("git@evil.com:git.example.com/a", False),
        ("https://[broken", False),
    ],
)
def test_git_hosts(uri: str, allowed: bool) -> None:
    body = message(docker={}, uri=uri)
    found = refused(Policy(git_hosts=("git.example.com",)), body, image=IMAGE)
    assert found == ([] if allowed else ["$.runSpec.uri"])


@pytest.mark.parametrize(
    ("spec", "algorithm", "expected"),
    [
        ({}, {}, []),
        ({"overrides": {"args": ["--x"]}}, {}, []),
        ({"overrides": {"entry_point": ["sh"]}}, {}, ["$.runSpec.overrides.entry_point"]),
        ({}, {"ContainerEntrypoint": ["sh"]}, ["AlgorithmSpecification.ContainerEntrypoint"]),
        (
            {"docker": {}, "job": "a/b/c:v1", "overrides": {"dockerfile": "D"}},
            {},
            ["$.runSpec.overrides.dockerfile"],
        ),
    ],
)
@pytest.mark.parametrize("policy", [Policy(secure_mode=True), Policy(lock_entrypoint=True)])
def test_the_command_is_locked(
    policy: Policy, spec: dict[str, Any], algorithm: Any, expected: list[str]
) -> None:
    body = message(sagemaker_args(AlgorithmSpecification=algorithm), **spec)
    assert refused(policy, body, image=IMAGE) == expected
    assert refused(Policy(), body, image=IMAGE) == []


JOB: dict[str, Any] = {"job": "acme/vision/train:v3"}


@pytest.mark.parametrize(
    ("spec", "algorithm", "expected"),
    [
        ({**JOB, "docker": {}}, {}, []),
        ({**JOB, "docker": {}}, {"TrainingImage": "${image_uri}"}, []),
        ({}, {}, []),
        (JOB, {}, ["$.runSpec.docker.docker_image"]),
        ({**JOB, "docker": {}, "image_uri": IMAGE}, {}, ["$.runSpec.image_uri"]),
        ({**JOB, "docker": {}}, {"TrainingImage": IMAGE}, ["AlgorithmSpecification.TrainingImage"]),
        (
            {**JOB, "docker": {}},
            {"TrainingImage": "999999999999.dkr.ecr.us-east-1.amazonaws.com/${image_uri}"},
            ["AlgorithmSpecification.TrainingImage"],
        ),
        ({**JOB, "docker": {}}, {"AlgorithmName": "stranger"}, ["AlgorithmSpecification.AlgorithmName"]),
        ({}, {"AlgorithmName": "stranger"}, []),
    ],
)
def test_secure_mode_keeps_a_jobs_image(spec: dict[str, Any], algorithm: Any, expected: list[str]) -> None:
    body = message(sagemaker_args(AlgorithmSpecification=algorithm), **spec)
    assert refused(Policy(secure_mode=True), body, image=IMAGE) == expected
    assert refused(Policy(lock_entrypoint=True), body, image=IMAGE) == []


def test_the_image_that_a_job_holds_is_its_own() -> None:
    body = message(**JOB, docker={})
    resolved = replace(launch_of(body), source=ImageSource(IMAGE, "$.runSpec.job"))
    request = request_of(body, image=IMAGE)
    assert check_policy(request, resolved, Policy(secure_mode=True), region=ACCOUNT.region) == ()


def test_a_command_that_comes_from_the_source_is_not_locked() -> None:
    """`entry_point` is the source's own by then: a job's, or that of the image."""
    policy = Policy(secure_mode=True, lock_entrypoint=True, roles=("x",)).for_checked_message()
    body = message(docker={}, uri="s3://bucket/code.zip", overrides={"entry_point": ["python", "train.py"]})
    assert refused(policy, body, image=IMAGE) == ["RoleArn"]


def test_a_launchs_own_key_is_refused_where_containers_get_none() -> None:
    own = message(_wandb_api_key="k" * 40)
    assert refused(Policy(container_key=False), own) == ["$.runSpec._wandb_api_key"]
    assert refused(Policy(container_key=False), message()) == []
    assert refused(Policy(), own) == []


def test_room_for_a_key_is_kept_only_where_there_is_one() -> None:
    probe = plan_of(message(sagemaker_args(Environment={})))
    variables = {f"V{n}": "x" for n in range(100 - len(probe.request["Environment"]))}
    full = message(sagemaker_args(Environment=variables))
    assert len(plan_of(full, policy=Policy(container_key=False)).request["Environment"]) == 100
    with pytest.raises(BadMessage, match=r"has 89 variables beside 12 .* leave out 1"):
        plan_of(full)
    fuller = message(sagemaker_args(Environment={**variables, "W": "x"}))
    with pytest.raises(BadMessage, match=r"has 90 variables beside 11 .* leave out 1"):
        plan_of(fuller, policy=Policy(container_key=False))


def test_all_refusals_at_once() -> None:
    policy = Policy(secure_mode=True, roles=("x",), images=("x",), instance_types=("x",), max_instances=0)
    found = refused(policy, message(overrides={"entry_point": ["sh"]}))
    assert len(found) == 5


@pytest.mark.parametrize(("resources", "count"), [({}, 1), ({"InstanceCount": 4}, 4), (GROUPS, 5)])
def test_instance_count(resources: dict[str, Any], count: int) -> None:
    assert instance_count({"ResourceConfig": resources}) == count


@pytest.mark.parametrize(
    ("variable", "refusing", "allowing", "where"),
    [
        ("LAUNCH_ALLOWED_ROLES", "x", "*/sm-*", "RoleArn"),
        ("LAUNCH_ALLOWED_IMAGES", "x", "*/train:*", "$.runSpec.docker.docker_image"),
        ("LAUNCH_ALLOWED_INSTANCE_TYPES", "ml.g5.*", "ml.m5.*,ml.g5.*", "ResourceConfig.InstanceType"),
        ("LAUNCH_ALLOWED_REGIONS", "eu-*", "us-*", "region"),
        ("LAUNCH_ALLOWED_SUBNETS", "subnet-9", "subnet-1", "VpcConfig.Subnets[0]"),
        ("LAUNCH_ALLOWED_SECURITY_GROUPS", "sg-1", "sg-*", "VpcConfig.SecurityGroupIds[1]"),
        ("LAUNCH_ALLOWED_ENVIRONMENT", "NCCL_*", "HF_*,NCCL_*", "Environment.HF_HOME"),
        ("LAUNCH_ALLOWED_OUTPUTS", "s3://x/*", "s3://launch-dev/*", "OutputDataConfig.S3OutputPath"),
        ("LAUNCH_MAX_INSTANCES", "1", "2", "ResourceConfig.InstanceCount"),
        ("LAUNCH_MAX_RUNTIME", "59m", "1h", "StoppingCondition.MaxRuntimeInSeconds"),
        ("LAUNCH_LOCK_ENTRYPOINT", "true", "false", "$.runSpec.overrides.entry_point"),
        ("LAUNCH_SECURE_MODE", "true", "false", "$.runSpec.overrides.entry_point"),
        ("LAUNCH_CONTAINER_API_KEY", "none", "environment", "$.runSpec._wandb_api_key"),
    ],
)
def test_each_setting_refuses_and_lets_through(
    variable: str, refusing: str, allowing: str, where: str
) -> None:
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}
    arguments = sagemaker_args(
        ResourceConfig=resources, VpcConfig=VPC, Environment={"HF_HOME": "/hf"}, region="us-east-1"
    )
    body = message(arguments, overrides={"entry_point": ["sh"]}, _wandb_api_key="k" * 40)
    assert plan_of(body, policy=policy_of(load_settings(None, {variable: allowing})))
    with pytest.raises(BadMessage) as raised:
        plan_of(body, policy=policy_of(load_settings(None, {variable: refusing})))
    (problem,) = raised.value.problems
    assert problem.path.removeprefix(f"{SAGEMAKER}.") == where
    assert raised.value.code == POLICY_CODE
