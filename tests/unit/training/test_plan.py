"""Plans: request, limits and policy as one decision, with every problem in one answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.launches import BUILT, IMAGE, SAGEMAKER, example, message, paths, plan_of, sagemaker_args
from worker.errors import BadMessage, Never
from worker.training.policy import Policy
from worker.training.request import TOP_LEVEL

GROUPS = [
    {"InstanceType": "ml.m5.large", "InstanceCount": 2, "InstanceGroupName": "a"},
    {"InstanceType": "ml.g5.xlarge", "InstanceCount": 3, "InstanceGroupName": "b"},
]


def bad(body: dict[str, Any], policy: Policy | None = None) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        plan_of(body, policy=policy)
    return caught.value


def test_a_plan() -> None:
    plan = plan_of(example("docker_image_launch.json"))
    assert plan.job_name == plan.request["TrainingJobName"] == "ab12cd34"
    assert plan.image == "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:2024-11-01"
    assert (plan.instance_type, plan.instance_count) == ("ml.g5.xlarge", 1)
    assert plan.launch.name == "smoke-test"


def test_a_plan_of_instance_groups() -> None:
    arguments = sagemaker_args(ResourceConfig={"InstanceGroups": GROUPS, "VolumeSizeInGB": 1})
    plan = plan_of(message(arguments))
    assert (plan.instance_type, plan.instance_count) == ("ml.m5.large", 5)


def test_a_plan_of_an_algorithm_q4() -> None:
    arguments = sagemaker_args(AlgorithmSpecification={"AlgorithmName": "mine"})
    assert plan_of(message(arguments, docker={})).image == ""


@pytest.mark.parametrize(("attempt", "name"), [(1, "ab12cd34"), (2, "ab12cd34-r2"), (11, "ab12cd34-r11")])
def test_each_attempt_has_a_name_of_its_own_q16(attempt: int, name: str) -> None:
    plan = plan_of(example("docker_image_launch.json"), attempt=attempt)
    assert plan.job_name == plan.request["TrainingJobName"] == name


SOURCES = [
    ("artifact_job.json", "LW-SOURCE-JOB"),
    ("image_job.json", "LW-SOURCE-JOB"),
    ("repo_job.json", "LW-SOURCE-JOB"),
    ("direct_git_source.json", "LW-SOURCE-CODE"),
    ("direct_s3_source.json", "LW-SOURCE-CODE"),
]


@pytest.mark.parametrize(("name", "code"), SOURCES)
def test_sources_without_an_image_are_refused(name: str, code: str) -> None:
    with pytest.raises(Never, match=r"ready images only|give --image-uri") as caught:
        plan_of(example(name))
    assert caught.value.code == code


@pytest.mark.parametrize("name", [name for name, _ in SOURCES])
def test_an_image_stands_for_what_the_source_would_give(name: str) -> None:
    assert plan_of(example(name), image=BUILT).image == BUILT


@pytest.mark.parametrize("image", [None, IMAGE])
def test_a_sweep_scheduler_is_refused(image: str | None) -> None:
    body = message(uri="placeholder-uri-scheduler", resource="local-process", resource_args={})
    with pytest.raises(Never) as caught:
        plan_of(body, image=image)
    assert caught.value.code == "LW-SWEEP-SCHEDULER"


def test_an_unused_source_is_not_refused_q27() -> None:
    arguments = sagemaker_args(AlgorithmSpecification={"TrainingImage": IMAGE})
    assert plan_of(message(arguments, docker={}, job="a/b/c:v1"), image=BUILT).image == IMAGE


def test_code_without_a_builder_is_never_submitted_q28() -> None:
    """W&B's agent would submit a bare python image with no code in it."""
    with pytest.raises(Never) as caught:
        plan_of(message(docker={}, job="a/b/c:v1"))
    assert caught.value.code == "LW-SOURCE-JOB"


def test_problems_of_request_limits_and_policy_come_together() -> None:
    arguments = sagemaker_args(
        RoleArn=None, OutputDataConfig={"S3OutputPath": "nowhere"}, Environment={"LAUNCH_X": "1"}, oddity=1
    )
    error = bad(message(arguments), Policy(instance_types=("ml.g5.*",)))
    assert error.code == "LW-BAD-MESSAGE"
    names = (
        "RoleArn",
        "Environment.LAUNCH_X",
        "OutputDataConfig.S3OutputPath",
        "oddity",
        "ResourceConfig.InstanceType",
    )
    assert sorted(paths(error)) == sorted(f"{SAGEMAKER}.{name}" for name in names)


def test_policy_alone_has_its_own_code() -> None:
    error = bad(message(), Policy(roles=("x",)))
    assert (error.code, paths(error)) == ("LW-POLICY", [f"{SAGEMAKER}.RoleArn"])


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"overrides": {"args": ["ok", "x" * 257]}}, "$.runSpec.overrides.args[1]"),
        ({"overrides": {"entry_point": ["x" * 257]}}, "$.runSpec.overrides.entry_point[0]"),
        ({"overrides": {"artifacts": {"a": "x" * 512}}}, "$.runSpec.overrides.artifacts"),
        ({"name": "x" * 513}, "$.runSpec.name"),
    ],
)
def test_problems_are_reported_where_the_sender_wrote_them(spec: dict[str, Any], path: str) -> None:
    assert paths(bad(message(**spec))) == [path]


def test_no_key_in_a_plan_q10() -> None:
    plan = plan_of(example("artifact_job.json"), image=BUILT)
    assert "WANDB_API_KEY" not in plan.request["Environment"]
    assert "0" * 40 not in json.dumps(plan.request)
    assert "0" * 40 not in repr(plan)


@pytest.mark.parametrize(
    ("arguments", "spec", "path"),
    [
        ({"Environment": {"MY_KEY": "k" * 40}}, {}, f"{SAGEMAKER}.Environment.MY_KEY"),
        ({"Tags": [{"Key": "x", "Value": "k" * 40}]}, {}, f"{SAGEMAKER}.Tags[0].Value"),
        ({}, {"overrides": {"args": ["--key=" + "k" * 40]}}, "$.runSpec.overrides.args[0]"),
        ({}, {"overrides": {"run_config": {"key": "k" * 40}}}, f"{SAGEMAKER}.Environment.WANDB_CONFIG"),
    ],
)
def test_a_pasted_key_is_refused_not_stored_q10(
    arguments: dict[str, Any], spec: dict[str, Any], path: str
) -> None:
    error = bad(message(sagemaker_args(**arguments), **spec, _wandb_api_key="k" * 40))
    assert paths(error) == [path]
    assert "k" * 40 not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
STRICT = Policy(
    secure_mode=True,
    roles=("x",),
    images=("x",),
    instance_types=("x",),
    regions=("x",),
    subnets=("x",),
    security_groups=("x",),
    environment=("x",),
    max_instances=1,
    max_runtime=1,
)


@given(st.dictionaries(st.sampled_from([*TOP_LEVEL, "region", "odd_key"]), JSON))
def test_any_sagemaker_arguments_are_a_plan_or_a_bad_message(arguments: dict[str, Any]) -> None:
    body = message({**sagemaker_args(), **arguments})
    for policy in (Policy(), STRICT):
        try:
            plan = plan_of(body, policy=policy)
        except BadMessage as error:
            assert error.problems
            assert all("\n" not in str(problem) for problem in error.problems)
        else:
            assert "WANDB_API_KEY" not in plan.request["Environment"]
