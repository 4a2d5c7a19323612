"""Policy: an allow-list refuses what it does not name, and an empty one nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.launches import IMAGE, SAGEMAKER, launch_of, message, request_of, sagemaker_args
from worker.training.policy import Policy, check_policy, instance_count

ROLES = ("arn:aws:iam::123456789012:role/sm-*",)
GROUPS = {
    "InstanceGroups": [
        {"InstanceType": "ml.m5.large", "InstanceCount": 2, "InstanceGroupName": "a"},
        {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 3, "InstanceGroupName": "b"},
    ],
    "VolumeSizeInGB": 10,
}
RULE = {"RuleConfigurationName": "r", "RuleEvaluatorImage": "other/rule", "InstanceType": "ml.p4d.24xlarge"}
VPC = {"SecurityGroupIds": ["sg-1", "sg-2"], "Subnets": ["subnet-1"]}


def refused(policy: Policy, body: dict[str, Any], image: str | None = None) -> list[str]:
    problems = check_policy(request_of(body, image=image), launch_of(body), policy)
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
        (Policy(regions=("eu-*",)), {"region": "us-east-1"}, ["region"]),
        (Policy(subnets=("subnet-1",), security_groups=("sg-*",)), {"VpcConfig": VPC}, []),
        (Policy(security_groups=("sg-1",)), {"VpcConfig": VPC}, ["VpcConfig.SecurityGroupIds[1]"]),
        (Policy(subnets=("subnet-2",)), {"VpcConfig": VPC}, ["VpcConfig.Subnets[0]"]),
        (Policy(subnets=("subnet-1",)), {}, ["VpcConfig.Subnets"]),
        (Policy(subnets=("subnet-1",)), {"VpcConfig": {"Subnets": 5}}, ["VpcConfig.Subnets"]),
        (Policy(environment=("HF_*",)), {"Environment": {"HF_HOME": "/hf"}}, []),
        (Policy(environment=("HF_*",)), {"environment": {"LD_PRELOAD": "x"}}, ["Environment.LD_PRELOAD"]),
        (Policy(max_instances=5), {"ResourceConfig": GROUPS}, []),
        (Policy(max_instances=4), {"ResourceConfig": GROUPS}, ["ResourceConfig.InstanceCount"]),
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
def test_secure_mode_locks_the_command(spec: dict[str, Any], algorithm: Any, expected: list[str]) -> None:
    body = message(sagemaker_args(AlgorithmSpecification=algorithm), **spec)
    assert refused(Policy(secure_mode=True), body, image=IMAGE) == expected


def test_all_refusals_at_once() -> None:
    policy = Policy(secure_mode=True, roles=("x",), images=("x",), instance_types=("x",), max_instances=0)
    found = refused(policy, message(overrides={"entry_point": ["sh"]}))
    assert len(found) == 5


@pytest.mark.parametrize(("resources", "count"), [({}, 1), ({"InstanceCount": 4}, 4), (GROUPS, 5)])
def test_instance_count(resources: dict[str, Any], count: int) -> None:
    assert instance_count({"ResourceConfig": resources}) == count
