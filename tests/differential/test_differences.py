"""Each difference in docs/differences.md: what W&B's agent does, and what this worker does instead.

A test is named after the difference's id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from botocore.validate import ParamValidator

from tests.differential.comparison import assert_same, our_request, their_request
from tests.differential.launches import BUILT, JOB, Case
from tests.differential.wandb_agent import Job, wandb_request
from tests.unit.launches import IMAGE, SAGEMAKER, message, paths, plan_of, sagemaker_args
from worker.errors import BadMessage
from worker.training.create_training_job import create_training_job
from worker.training.policy import Policy

DOCS = Path(__file__).parents[2] / "docs" / "differences.md"
ROLE = "arn:aws:iam::123456789012:role/sm-exec"


def case(**spec: Any) -> Case:
    return Case(message(**{"run_id": "r1", **spec}))


def with_arguments(changes: dict[str, Any], **spec: Any) -> Case:
    """A case whose SageMaker arguments differ from the valid ones; a None stays in."""
    arguments = {**sagemaker_args(), **changes}
    return case(**spec, resource_args={"sagemaker": arguments})


def refused(wrong: Case) -> list[str]:
    """Where this worker finds fault with a case."""
    with pytest.raises(BadMessage) as caught:
        our_request(wrong)
    return paths(caught.value)


def aws_refuses(request: dict[str, Any]) -> bool:
    """AWS would: botocore's own validator does already."""
    return bool(ParamValidator().validate(request, create_training_job()).has_errors())


def test_d1_the_worker_s_marks() -> None:
    request = our_request(case())
    assert request["Environment"]["LAUNCH_ID"]
    assert [tag["Key"] for tag in request["Tags"]] == ["WandbRunId", "LaunchId", "LaunchWorker"]
    assert assert_same(case()) == {"D1", "D2"}


def test_d2_the_key_joins_at_the_submit() -> None:
    assert "WANDB_API_KEY" in their_request(case())["Environment"]
    assert "WANDB_API_KEY" not in plan_of(case().message).request["Environment"]


def test_d3_macros_come_first() -> None:
    arguments = {"RoleArn": "arn:aws:iam::123456789012:role/${project_name}"}
    macro = with_arguments(arguments)
    assert their_request(macro)["RoleArn"].endswith("${project_name}")
    assert our_request(macro)["RoleArn"] == "arn:aws:iam::123456789012:role/vision"
    image = with_arguments({"AlgorithmSpecification": {"TrainingImage": "${image_uri}"}})
    assert their_request(image)["AlgorithmSpecification"]["TrainingImage"] == "${image_uri}"
    assert our_request(image)["AlgorithmSpecification"]["TrainingImage"] == IMAGE


def test_d4_the_worker_s_environment_is_no_macro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_SECRET", "hush")
    reads = with_arguments({"Environment": {"X": "${AGENT_SECRET}"}})
    assert their_request(reads)["Environment"]["X"] == "hush"
    assert our_request(reads)["Environment"]["X"] == "${AGENT_SECRET}"


def test_d5_built_in_macros_win_and_absent_ones_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("run_id", "stolen")
    macros = with_arguments({"Environment": {"X": "${run_id}|${run_name}|${author}"}})
    assert their_request(macros)["Environment"]["X"] == "stolen|None|None"
    assert our_request(macros)["Environment"]["X"] == "r1||"


def test_d6_an_algorithm_resource_runs() -> None:
    algorithm = with_arguments({"AlgorithmSpecification": {"AlgorithmName": "mine"}})
    assert their_request(algorithm)["AlgorithmSpecification"].keys() >= {"AlgorithmName", "TrainingImage"}
    assert our_request(algorithm)["AlgorithmSpecification"] == {
        "AlgorithmName": "mine",
        "TrainingInputMode": "File",
    }


@pytest.mark.parametrize("specification", [None, {}, {"EnableSageMakerMetricsTimeSeries": True}])
def test_d7_an_algorithm_specification_may_be_incomplete(specification: Any) -> None:
    partial = with_arguments({"AlgorithmSpecification": specification})
    if specification is None:
        with pytest.raises(AttributeError):
            their_request(partial)
    else:
        assert aws_refuses(their_request(partial)), "TrainingInputMode is missing"
    algorithm = our_request(partial)["AlgorithmSpecification"]
    assert algorithm == {**(specification or {}), "TrainingImage": IMAGE, "TrainingInputMode": "File"}


@pytest.mark.parametrize(
    ("wrong", "places"),
    [
        (
            case(overrides={"artifacts": {f"d{i}": {"id": "x" * 60} for i in range(10)}}),
            ["$.runSpec.overrides.artifacts"],
        ),
        (case(overrides={"run_config": {"k": "v" * 60_000}}), ["$.runSpec.overrides.run_config"]),
        (case(overrides={"args": ["x" * 257]}), ["$.runSpec.overrides.args[0]"]),
        (
            with_arguments(
                {"Tags": [{"Key": f"k{i}", "Value": ""} for i in range(50)], "StoppingCondition": {}, "X": 1}
            ),
            [f"{SAGEMAKER}.Tags", f"{SAGEMAKER}.X"],
        ),
    ],
)
def test_d8_what_aws_would_refuse_is_refused_before_the_call(wrong: Case, places: list[str]) -> None:
    their_request(wrong)
    assert sorted(refused(wrong)) == places


@pytest.mark.parametrize(
    "spelled",
    [
        {"output_data_config": {"S3OutputPath": "s3://launch-dev/out"}, "OutputDataConfig": None},
        {"training_job_name": "mine"},
        {"environment": {"A": "1"}},
        {"tags": [{"key": "team", "value": "v"}]},
        {
            "resourceConfig": {"instance_type": "ml.m5.large", "instanceCount": 1, "volume_size_in_gb": 9},
            "ResourceConfig": None,
        },
        {"algorithm_specification": {"training_input_mode": "Pipe"}},
    ],
)
def test_d9_keys_in_any_spelling(spelled: dict[str, Any]) -> None:
    cleaned: dict[str, dict[str, Any]] = {
        "output_data_config": {"OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"}},
        "training_job_name": {"TrainingJobName": "mine"},
        "environment": {"Environment": {"A": "1"}},
        "tags": {"Tags": [{"Key": "team", "Value": "v"}]},
        "resourceConfig": {
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 9}
        },
        "algorithm_specification": {"AlgorithmSpecification": {"TrainingInputMode": "Pipe"}},
    }
    twisted, clean = with_arguments(spelled), with_arguments(cleaned[next(iter(spelled))])
    try:
        theirs: dict[str, Any] = their_request(twisted)
    except Exception:  # LaunchError or whatever else its code runs into
        theirs = {}
    assert theirs != their_request(clean)
    assert our_request(twisted) == our_request(clean)
    assert_same(clean)


@pytest.mark.parametrize(
    "nulls",
    [
        {"docker": {"docker_image": IMAGE}, "git": None},
        {"overrides": None},
        {"_resume_count": None},
        {"author": None},
        {"overrides": {"run_config": None, "files": None}},
        {"resource_args": {"sagemaker": {**sagemaker_args(), "Tags": None}}},
        {"resource_args": {"sagemaker": {**sagemaker_args(), "Environment": None}}},
        {"resource_args": {"sagemaker": {**sagemaker_args(), "builder": None}}},
    ],
)
def test_d10_null_is_absence(nulls: dict[str, Any]) -> None:
    try:
        theirs: dict[str, Any] = their_request(case(**nulls))
    except (AttributeError, TypeError):
        theirs = {}
    assert theirs != their_request(case())
    assert our_request(case(**nulls)) == our_request(case())


def test_d11_values_become_text() -> None:
    numbers = with_arguments({"Environment": {"A": 1, "B": True}, "HyperParameters": {"lr": 0.1}})
    assert aws_refuses(their_request(numbers))
    request = our_request(numbers)
    assert (request["Environment"]["A"], request["Environment"]["B"]) == ("1", "true")
    assert request["HyperParameters"] == {"lr": "0.1"}
    texts = with_arguments({"Environment": {"A": "1", "B": "true"}, "HyperParameters": {"lr": "0.1"}})
    assert request == our_request(texts)


@pytest.mark.parametrize(
    "name", ["WANDB_RUN_ID", "WANDB_ENTITY", "WANDB_API_KEY", "WANDB_CONFIG", "LAUNCH_ID"]
)
def test_d12_a_message_does_not_replace_what_the_worker_sets(name: str) -> None:
    hijack = with_arguments({"Environment": {name: "other", "WANDB_TAGS": "mine"}})
    assert their_request(hijack)["Environment"][name] == "other"
    assert refused(hijack) == [f"{SAGEMAKER}.Environment.{name}"]


@pytest.mark.parametrize("name", ["WANDB_NAME", "WANDB_DOCKER", "WANDB_RESUME", "WANDB_MODE", "HF_HOME"])
def test_d12_other_variables_stay_the_user_s(name: str) -> None:
    assert_same(with_arguments({"Environment": {name: "mine"}}, name="smoke", _resume_count=1))


def test_d13_a_run_id_follows_from_the_message() -> None:
    nameless = Case(message())
    first, second = (their_request(nameless)["TrainingJobName"] for _ in range(2))
    assert first != second
    assert our_request(nameless) == our_request(nameless)


def test_d14_names_are_made_valid() -> None:
    odd = with_arguments({"TrainingJobName": "my_job." + "x" * 70})
    pattern = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
    assert not pattern.fullmatch(their_request(odd)["TrainingJobName"])
    assert pattern.fullmatch(our_request(odd)["TrainingJobName"])
    assert plan_of(odd.message, attempt=2).job_name.endswith("-r2")


def test_d15_tags_are_valid_and_the_worker_s_are_its_own() -> None:
    odd = case(run_id="a*b")
    assert their_request(odd)["Tags"] == [{"Key": "WandbRunId", "Value": "a*b"}]
    assert our_request(odd)["Tags"][0] == {"Key": "WandbRunId", "Value": "a_b"}
    twice = with_arguments({"Tags": [{"Key": "WandbRunId", "Value": "x"}]})
    assert [tag["Key"] for tag in their_request(twice)["Tags"]] == ["WandbRunId", "WandbRunId"]
    assert refused(twice) == [f"{SAGEMAKER}.Tags[0]"]
    same = with_arguments({"Tags": [{"Key": "WandbRunId", "Value": "${run_id}"}]})
    assert our_request(same)["Tags"] == our_request(case())["Tags"]


@pytest.mark.parametrize(
    ("role", "theirs", "ours"),
    [
        ("arn:aws-cn:iam::1:role/x", "arn:aws:iam::123456789012:role/arn:aws-cn:iam::1:role/x", None),
        (
            "arn:aws-cn:iam::210987654321:role/x",
            "arn:aws:iam::123456789012:role/arn:aws-cn:iam::210987654321:role/x",
            "arn:aws-cn:iam::210987654321:role/x",
        ),
        ("role/sm-exec", "arn:aws:iam::123456789012:role/role/sm-exec", ROLE),
        ("/sm-exec", "arn:aws:iam::123456789012:role//sm-exec", ROLE),
    ],
)
def test_d16_roles_in_every_form(role: str, theirs: str, ours: str | None) -> None:
    given = with_arguments({"RoleArn": role})
    assert their_request(given)["RoleArn"] == theirs
    if ours is None:
        assert refused(given) == [f"{SAGEMAKER}.RoleArn"]
    else:
        assert our_request(given)["RoleArn"] == ours


def test_d17_images_that_sagemaker_cannot_pull_are_refused() -> None:
    hub = case(docker={"docker_image": "pytorch/pytorch:2.3.0"})
    assert their_request(hub)["AlgorithmSpecification"]["TrainingImage"] == "pytorch/pytorch:2.3.0"
    assert refused(hub) == ["$.runSpec.docker.docker_image"]


@pytest.mark.parametrize(("name", "value"), [("region", "eu-west-1"), ("profile", "research")])
def test_d18_another_region_or_profile_is_refused(name: str, value: str) -> None:
    elsewhere = with_arguments({name: value})
    assert their_request(elsewhere) == their_request(case())
    assert refused(elsewhere) == [f"{SAGEMAKER}.{name}"]


def test_d19_wandb_docker_names_the_image_that_runs() -> None:
    other = IMAGE.replace(":1", ":2")
    given = with_arguments({"AlgorithmSpecification": {"TrainingImage": other, "TrainingInputMode": "File"}})
    theirs = their_request(given)
    assert theirs["AlgorithmSpecification"]["TrainingImage"] == other
    assert theirs["Environment"]["WANDB_DOCKER"] == IMAGE
    ours = our_request(given)
    assert ours["AlgorithmSpecification"]["TrainingImage"] == other
    assert "WANDB_DOCKER" not in ours["Environment"]


@pytest.mark.parametrize(
    ("name", "value"), [("project", ""), ("project", "a/b"), ("run_id", "a:b"), ("entity", "a b ")]
)
def test_d20_names_that_wandb_refuses_are_refused_at_once(name: str, value: str) -> None:
    their_request(case(**{name: value}))
    assert refused(case(**{name: value})) == [f"$.runSpec.{name}"]


def test_d21_sweep_schedulers_are_refused() -> None:
    with pytest.raises(BadMessage) as caught:
        our_request(case(uri="placeholder-uri-scheduler", docker={}, resource="local-process"))
    assert caught.value.code == "LW-SWEEP-SCHEDULER"
    assert "wandb launch-agent" in str(caught.value)


def test_d22_a_key_pasted_into_a_request_is_refused() -> None:
    pasted = case(_wandb_api_key="k" * 40, overrides={"args": ["--key=" + "k" * 40]})
    assert "k" * 40 in str(their_request(pasted)["AlgorithmSpecification"])
    assert refused(pasted) == ["$.runSpec.overrides.args[0]"]


def test_d23_sagemaker_is_the_only_resource_and_the_default() -> None:
    without = message(run_id="r1")
    del without["runSpec"]["resource"]
    assert our_request(Case(without)) == our_request(case())
    assert refused(case(resource="kubernetes")) == ["$.runSpec.resource"]


def test_d24_empty_texts_are_absent() -> None:
    assert their_request(case(author=""))["Environment"]["WANDB_USERNAME"] == ""
    assert our_request(case(author="")) == our_request(case())


def test_d25_a_message_is_more_than_a_queue_item() -> None:
    with pytest.raises(ValueError, match="dictionary"):
        wandb_request({**message(), "runSpec": "{}"}, image="")
    body = {**case().message, "launchId": "mine", "options": {"log_target": "off", "priority": "high"}}
    assert our_request(Case(body)) == our_request(case())


def test_d26_policy_and_secure_mode() -> None:
    entry = with_arguments(
        {"AlgorithmSpecification": {"TrainingInputMode": "File", "ContainerEntrypoint": ["x"]}}
    )
    assert_same(entry)
    for policy, place in (
        (Policy(secure_mode=True), f"{SAGEMAKER}.AlgorithmSpecification.ContainerEntrypoint"),
        (Policy(roles=("none",)), f"{SAGEMAKER}.RoleArn"),
    ):
        with pytest.raises(BadMessage) as caught:
            plan_of(entry.message, policy=policy)
        assert (caught.value.code, paths(caught.value)) == ("LW-POLICY", [place])


def test_d27_one_argument_spelled_twice_is_told() -> None:
    twice = with_arguments({"role_arn": "other"})
    assert their_request(twice)["RoleArn"] == ROLE
    assert our_request(twice)["RoleArn"] == ROLE
    (warning,) = plan_of(twice.message).warnings
    assert warning.path == f"{SAGEMAKER}.role_arn"
    # Of other arguments W&B's agent takes the last one.
    pools = {
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        "stopping_condition": {"MaxRuntimeInSeconds": 90},
    }
    assert their_request(with_arguments(pools))["StoppingCondition"] == {"MaxRuntimeInSeconds": 90}
    assert our_request(with_arguments(pools))["StoppingCondition"] == {"MaxRuntimeInSeconds": 60}


def test_d28_a_job_s_image_asked_for_by_macro_runs_the_job_s_command() -> None:
    macro = with_arguments(
        {"AlgorithmSpecification": {"TrainingImage": "${image_uri}", "TrainingInputMode": "File"}},
        docker={},
        uri=None,
    )
    macro.message["runSpec"]["job"] = JOB
    code = Case(macro.message, Job(entry_point=("python", "train.py")), BUILT)
    assert their_request(code)["AlgorithmSpecification"] == {
        "TrainingImage": "${image_uri}",
        "TrainingInputMode": "File",
    }
    assert our_request(code)["AlgorithmSpecification"] == {
        "TrainingImage": BUILT,
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["python", "train.py"],
    }


def listed() -> dict[str, str]:
    """Ids in docs/differences.md and the text of their entries."""
    parts = re.split(r"^### ([A-Z]\d+) ", DOCS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_lists_what_is_tested_here_and_nothing_else() -> None:
    tested = {match[1].upper() for name in globals() if (match := re.match(r"test_(d\d+)_", name))}
    assert {name for name in listed() if name.startswith("D")} == tested


def test_every_entry_says_what_wandb_does_what_the_worker_does_and_why() -> None:
    for name, text in listed().items():
        for part in ("W&B:", "Here:", "Why:"):
            assert part in text, f"{name} has no {part}"


def test_every_test_that_an_entry_names_exists() -> None:
    root = DOCS.parents[1]
    for name, text in listed().items():
        named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", text)
        assert named or name.startswith("D"), f"{name} names no test"
        for file, test in named:
            assert f"def {test}(" in (root / file).read_text(), f"{name}: {file}::{test}"
