"""Plans: request, limits and policy as one decision, with every problem in one answer."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.launches import (
    ACCOUNT,
    BASE_URL,
    BUILT,
    IMAGE,
    SAGEMAKER,
    example,
    message,
    paths,
    plan_of,
    sagemaker_args,
)
from worker.errors import BadMessage, Never
from worker.launch.intent import read_message
from worker.training.create_training_job import create_training_job
from worker.training.plan import plan_launch, read_launch
from worker.training.policy import Policy

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
    with pytest.raises(Never, match="give --image-uri") as caught:
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
        ({"author": "x" * 513}, "$.runSpec.author"),
        ({"sweep_id": "x" * 513}, "$.runSpec.sweep_id"),
        ({"job": "a/b/" + "x" * 600 + ":v1"}, "$.runSpec.job"),
        ({"docker": {"docker_image": "pytorch/pytorch:2.3.0"}}, "$.runSpec.docker.docker_image"),
        ({"docker": {}, "image_uri": "python:3.12"}, "$.runSpec.image_uri"),
        ({"overrides": {"run_config": {"k": "v" * 60_000}}}, "$.runSpec.overrides.run_config"),
        (
            {"overrides": {"run_config": {"k": "v" * 9_000}, "files": {"k": "v" * 50_000}}},
            "$.runSpec.overrides.files",
        ),
    ],
)
def test_problems_are_reported_where_the_sender_wrote_them(spec: dict[str, Any], path: str) -> None:
    assert paths(bad(message(**spec))) == [path]


def test_the_user_s_own_variables_are_reported_where_they_stand() -> None:
    arguments = sagemaker_args(Environment={"WANDB_NAME": "x" * 513, "WANDB_CONFIG": '{"a": 1}'})
    assert sorted(paths(bad(message(arguments, name="y" * 600)))) == [
        f"{SAGEMAKER}.Environment.WANDB_CONFIG",
        f"{SAGEMAKER}.Environment.WANDB_NAME",
    ]


def test_too_many_variables_say_how_many_are_whose() -> None:
    arguments = sagemaker_args(Environment={f"A{i}": "" for i in range(120)})
    (problem,) = bad(message(arguments)).problems
    assert str(problem) == (
        f"{SAGEMAKER}.Environment: has 120 variables beside 12 of the worker, SageMaker's limit is 100;"
        " leave out 32"
    )


def test_a_config_that_does_not_fit_says_how_much_would() -> None:
    (problem,) = bad(message(overrides={"run_config": {"k": "v" * 60_000}})).problems
    assert "fills 118 variables of 512 characters beside 11 others" in problem.what
    assert "shorten it to 45568 characters" in problem.remedy
    assert plan_of(message(overrides={"run_config": {"k": "v" * (45568 - 9)}}))


def test_too_many_tags_say_how_many_are_the_worker_s() -> None:
    arguments = sagemaker_args(Tags=[{"Key": f"k{i}", "Value": ""} for i in range(48)])
    (problem,) = bad(message(arguments)).problems
    assert (problem.what, problem.remedy) == (
        "has 48 tags beside 3 of the worker, SageMaker's limit is 50",
        "leave out 1",
    )


def test_problems_are_reported_in_the_sender_s_spelling_q7() -> None:
    arguments = {
        **sagemaker_args(ResourceConfig=None, RoleArn=None),
        "resource_config": {"instance_type": "ml.m5.large", "instance_count": 0},
        "role_arn": "arn:aws:s3:::x",
        "environment": {"A": "x" * 513},
    }
    assert sorted(paths(bad(message(arguments)))) == [
        f"{SAGEMAKER}.environment.A",
        f"{SAGEMAKER}.resource_config.VolumeSizeInGB",
        f"{SAGEMAKER}.resource_config.instance_count",
        f"{SAGEMAKER}.role_arn",
    ]


def test_a_launch_without_its_image_has_its_other_problems_told_too() -> None:
    error = bad(message(sagemaker_args(RoleArn=None), docker={}, uri="s3://b/k.zip"), Policy(images=("x",)))
    assert (error.code, paths(error)) == ("LW-BAD-MESSAGE", ["$.runSpec.uri", f"{SAGEMAKER}.RoleArn"])
    error = bad(message(docker={}, uri="s3://b/k.zip"), Policy(roles=("x",)))
    assert (error.code, paths(error)) == ("LW-POLICY", ["$.runSpec.uri", f"{SAGEMAKER}.RoleArn"])


def reviewed(body: dict[str, Any]) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        read_launch(
            read_message(json.dumps(body)),
            partial(
                plan_launch,
                account=ACCOUNT,
                base_url=BASE_URL,
                deployment="default",
                macros={},
                policy=Policy(images=(IMAGE,)),
            ),
            launch_id="a" * 26,
            default_log_target="companion",
        )
    return caught.value


@pytest.mark.parametrize(
    ("changes", "arguments", "places"),
    [
        (
            {"entity": 5, "resource": "kubernetes"},
            {"RoleArn": None},
            ["$.runSpec.entity", "$.runSpec.resource"],
        ),
        ({"entity": 5}, {"RoleArn": None}, ["$.runSpec.entity", f"{SAGEMAKER}.RoleArn"]),
        ({"docker": {}, "project": None}, {}, ["$.runSpec.project", "$.runSpec"]),
        ({"docker": "x"}, {"RoleArn": 5}, ["$.runSpec.docker", f"{SAGEMAKER}.RoleArn"]),
        ({"docker": {}, "job": ["x"]}, {}, ["$.runSpec.job"]),
        ({"docker": {}}, {"RoleArn": 5}, ["$.runSpec", f"{SAGEMAKER}.RoleArn"]),
        (
            {"overrides": {"args": ["a", 1]}, "name": "x" * 600},
            {},
            ["$.runSpec.overrides.args[1]", "$.runSpec.name"],
        ),
        ({"name": 5, "resource_args": {"sagemaker": 5}}, {}, ["$.runSpec.name", f"{SAGEMAKER}"]),
        ({"name": 5, "resource_args": None}, {}, ["$.runSpec.name", f"{SAGEMAKER}"]),
        ({"name": 5, "uri": "placeholder-uri-scheduler"}, {}, ["$.runSpec.name"]),
    ],
)
def test_problems_of_fields_and_of_the_request_come_together(
    changes: dict[str, Any], arguments: dict[str, Any], places: list[str]
) -> None:
    """None of them is only a consequence of another."""
    error = reviewed(message(sagemaker_args(**arguments), **changes) if arguments else message(**changes))
    assert paths(error) == places
    if arguments:
        assert error.code == "LW-BAD-MESSAGE"


@pytest.mark.parametrize("image", [3, ["x"], {"a": 1}])
def test_a_training_image_that_is_no_text_is_refused_where_it_stands(image: Any) -> None:
    """And not passed over for the launch's own image."""
    arguments = sagemaker_args(algorithm_specification={"training_image": image})
    assert paths(bad(message(arguments))) == [f"{SAGEMAKER}.algorithm_specification.training_image"]


def test_an_algorithm_name_that_is_no_text_is_one_problem() -> None:
    body = message(sagemaker_args(AlgorithmSpecification={"AlgorithmName": 5}))
    assert paths(bad(body)) == [f"{SAGEMAKER}.AlgorithmSpecification.AlgorithmName"]


def test_a_role_with_an_unknown_macro_says_which_there_are() -> None:
    arn = "arn:aws:iam::${ACCOUNT}:role/x"
    (problem,) = bad(message(sagemaker_args(RoleArn=arn))).problems
    assert "LAUNCH_MACRO_*" in problem.remedy


def test_a_good_message_is_read() -> None:
    assert plan_of(message()).warnings == ()


@pytest.mark.parametrize(
    ("arguments", "spec", "place"),
    [
        ({"role_arn": "other"}, {}, f"{SAGEMAKER}.role_arn"),
        ({"EnableNetworkIsolation": True}, {}, f"{SAGEMAKER}.EnableNetworkIsolation"),
        (
            {"AlgorithmSpecification": {"AlgorithmName": "a"}},
            {"overrides": {"args": ["x"]}},
            "$.runSpec.overrides.args",
        ),
        ({}, {"priority": "urgent"}, "$.runSpec.priority"),
    ],
)
def test_what_does_not_keep_a_launch_from_running_is_a_warning(
    arguments: dict[str, Any], spec: dict[str, Any], place: str
) -> None:
    (warning,) = plan_of(message(sagemaker_args(**arguments), **spec)).warnings
    assert warning.path == place
    assert warning.what
    assert warning.remedy


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
        ({}, {"overrides": {"run_config": {"key": "k" * 40}}}, "$.runSpec.overrides.run_config.key"),
        (
            {},
            {"overrides": {"run_config": {"a": "x" * 480, "key": "k" * 40}}},  # cut in two by the chunks
            "$.runSpec.overrides.run_config.key",
        ),
        ({}, {"overrides": {"files": {"f": ["k" * 40]}}}, "$.runSpec.overrides.files.f[0]"),
        ({}, {"overrides": {"run_config": {"k" * 40: 1}}}, "$.runSpec.overrides.run_config"),
        ({}, {"name": "k" * 40}, "$.runSpec.name"),
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


@given(st.dictionaries(st.sampled_from([*create_training_job().members, "region", "odd_key"]), JSON))
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
