"""CreateTrainingJob requests: as W&B's runner builds them, and where it is wrong (Q…), the better way.

The Q numbers are those of the parity inventory."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.launches import (
    ACCOUNT,
    BUILT,
    IMAGE,
    SAGEMAKER,
    example,
    launch_of,
    message,
    paths,
    request_of,
    sagemaker_args,
)
from worker.errors import BadMessage
from worker.training.create_training_job import create_training_job
from worker.training.request import AccountFacts, with_api_key, with_job_name

TOP_LEVEL = set(create_training_job().members)

ROLE = "arn:aws:iam::123456789012:role/sm-exec"


def refused(body: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(BadMessage) as caught:
        request_of(body, **options)
    return paths(caught.value)


def tags(run_id: str, launch_id: str) -> list[dict[str, str]]:
    return [
        {"Key": "WandbRunId", "Value": run_id},
        {"Key": "LaunchId", "Value": launch_id},
        {"Key": "LaunchWorker", "Value": "default"},
    ]


DOCKER_IMAGE_LAUNCH = {
    "TrainingJobName": "ab12cd34",
    "RoleArn": ROLE,
    "AlgorithmSpecification": {
        "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:2024-11-01",
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["python", "/opt/train.py"],
        "ContainerArguments": ["--epochs", "1"],
    },
    "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
    "OutputDataConfig": {"S3OutputPath": "s3://acme-sm-out/acme/vision"},
    "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
    "Environment": {
        "WANDB_BASE_URL": "https://api.wandb.ai",
        "WANDB_PROJECT": "vision",
        "WANDB_ENTITY": "acme",
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": "ab12cd34",
        "WANDB_DOCKER": "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:2024-11-01",
        "WANDB_NAME": "smoke-test",
        "WANDB_USERNAME": "jdoe",
        "WANDB_RESUME": "allow",
        "WANDB_LAUNCH_TRACE_ID": "UnVuUXVldWVJdGVtOjQyMA==",
        "WANDB_CONFIG": '{"epochs": 1}',
        "WANDB_LAUNCH_FILE_OVERRIDES": "{}",
        "WANDB_ARTIFACTS": "{}",
        "LAUNCH_ID": "r7tnhdqnh6x4pti3kbxlphwqf6",
    },
    "Tags": tags("ab12cd34", "r7tnhdqnh6x4pti3kbxlphwqf6"),
}
DIRECT_IMAGE_NO_WANDB = {
    "TrainingJobName": "2duzz5bcfk",
    "RoleArn": ROLE,
    "AlgorithmSpecification": {
        "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/xgb:7",
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}],
    },
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
    "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    "Environment": {
        "WANDB_BASE_URL": "https://api.wandb.ai",
        "WANDB_PROJECT": "tabular",
        "WANDB_ENTITY": "acme",
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": "2duzz5bcfk",
        "WANDB_DOCKER": "123456789012.dkr.ecr.us-east-1.amazonaws.com/xgb:7",
        "WANDB_CONFIG": "{}",
        "WANDB_LAUNCH_FILE_OVERRIDES": "{}",
        "WANDB_ARTIFACTS": "{}",
        "LAUNCH_ID": "2duzz5bcfkte74bopustwzl72b",
    },
    "Tags": tags("2duzz5bcfk", "2duzz5bcfkte74bopustwzl72b"),
}
IMAGE_JOB = {
    "TrainingJobName": "vision-3e7zfv3cij",
    "RoleArn": ROLE,
    "AlgorithmSpecification": {
        "TrainingImage": BUILT,
        "TrainingInputMode": "File",
        "ContainerArguments": ["--fp16"],
    },
    "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
    "OutputDataConfig": {"S3OutputPath": "s3://acme-sm-out/acme/vision"},
    "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
    "Environment": {
        "WANDB_BASE_URL": "https://api.wandb.ai",
        "WANDB_PROJECT": "vision",
        "WANDB_ENTITY": "acme",
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": "3e7zfv3cij",
        "WANDB_DOCKER": BUILT,
        "WANDB_USERNAME": "jdoe",
        "WANDB_LAUNCH_TRACE_ID": "UnVuUXVldWVJdGVtOjQxNw==",
        "WANDB_CONFIG": '{"lr": 0.001, "epochs": 10}',
        "WANDB_LAUNCH_FILE_OVERRIDES": "{}",
        "WANDB_ARTIFACTS": (
            '{"_wandb_job": "acme/vision/job-123456789012.dkr.ecr.us-east-1.amazonaws.com_train:v3"}'
        ),
        "LAUNCH_ID": "3e7zfv3cij42fmfmgai5u6dqjv",
    },
    "Tags": [{"Key": "team", "Value": "vision"}, *tags("3e7zfv3cij", "3e7zfv3cij42fmfmgai5u6dqjv")],
}


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("docker_image_launch.json", None, DOCKER_IMAGE_LAUNCH),
        ("direct_image_no_wandb.json", None, DIRECT_IMAGE_NO_WANDB),
        ("image_job.json", BUILT, IMAGE_JOB),
    ],
)
def test_examples_golden(name: str, image: str | None, expected: dict[str, Any]) -> None:
    assert request_of(example(name), image=image) == expected


def test_spot_checkpoint_and_builder_of_the_repo_job() -> None:
    request = request_of(example("repo_job.json"), image=BUILT)
    assert request["EnableManagedSpotTraining"] is True
    assert request["CheckpointConfig"] == {"S3Uri": "s3://acme-ckpt/p0q1r2s3"}
    assert "builder" not in request
    assert request["Environment"]["WANDB_SWEEP_ID"] == "k3v9x2ab"


def test_the_worker_s_key_is_nowhere_until_it_is_added_q10() -> None:
    request = request_of(example("artifact_job.json"), image=BUILT)
    assert "0" * 40 not in str(request)
    assert "WANDB_USERNAME" not in request["Environment"]
    submitted = with_api_key(request, "k")
    assert submitted["Environment"]["WANDB_API_KEY"] == "k"
    assert "WANDB_API_KEY" not in request["Environment"]


def test_another_job_name() -> None:
    request = request_of(message())
    assert with_job_name(request, "x-r2") == {**request, "TrainingJobName": "x-r2"}


def test_macros_reach_role_and_training_image_q1() -> None:
    arguments = sagemaker_args(
        RoleArn="arn:aws:iam::${ACCT}:role/x",
        AlgorithmSpecification={"TrainingImage": "${REGISTRY}/${project_name}:1"},
        Environment={"IMAGE": "${image_uri}"},
    )
    request = request_of(message(arguments), ACCT="210987654321", REGISTRY="reg")
    assert request["RoleArn"] == "arn:aws:iam::210987654321:role/x"
    assert request["AlgorithmSpecification"]["TrainingImage"] == "reg/vision:1"
    assert request["Environment"]["IMAGE"] == "reg/vision:1"


def test_training_image_may_ask_for_the_launch_s_own_image_q1() -> None:
    arguments = sagemaker_args(AlgorithmSpecification={"TrainingImage": "${image_uri}"})
    assert request_of(message(arguments))["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    built = request_of(message(arguments, docker={}, job="a/b/c:v1"), image=BUILT)
    assert built["AlgorithmSpecification"]["TrainingImage"] == BUILT


def test_the_environment_of_the_worker_is_no_macro_q2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_SECRET", "hush")
    request = request_of(message(sagemaker_args(Environment={"X": "${WORKER_SECRET}"})))
    assert request["Environment"]["X"] == "${WORKER_SECRET}"


def test_absent_macros_render_as_nothing_q3() -> None:
    request = request_of(message(sagemaker_args(Environment={"X": "[${run_name}]"})), run_id="stolen")
    assert request["Environment"]["X"] == "[]"
    assert request["Environment"]["WANDB_RUN_ID"] != "stolen"


def test_an_algorithm_has_no_image_and_no_entrypoint_q4() -> None:
    arguments = sagemaker_args(AlgorithmSpecification={"AlgorithmName": "my-algorithm"})
    body = message(arguments, overrides={"entry_point": ["python"], "args": ["x"]})
    specification = {"AlgorithmName": "my-algorithm", "TrainingInputMode": "File"}
    assert request_of(body)["AlgorithmSpecification"] == specification
    assert request_of(body, image=BUILT)["AlgorithmSpecification"] == specification


@pytest.mark.parametrize("specification", [None, {}, {"TrainingImage": None}, {"TrainingInputMode": None}])
def test_an_empty_algorithm_specification_q5(specification: Any) -> None:
    arguments = {**sagemaker_args(), "AlgorithmSpecification": specification}
    expected = {"TrainingImage": IMAGE, "TrainingInputMode": "File"}
    assert request_of(message(arguments))["AlgorithmSpecification"] == expected


def test_no_image_is_a_clear_problem_q5() -> None:
    assert refused(message(docker={}, uri="s3://b/k.zip")) == ["$.runSpec"]


def test_given_algorithm_specification_is_kept() -> None:
    given = {
        "TrainingInputMode": "Pipe",
        "MetricDefinitions": [{"Name": "a", "Regex": "b"}],
        "ContainerEntrypoint": ["given"],
        "ContainerArguments": ["given"],
    }
    body = message(sagemaker_args(AlgorithmSpecification=given))
    assert request_of(body)["AlgorithmSpecification"] == {**given, "TrainingImage": IMAGE}
    body["runSpec"]["overrides"] = {"entry_point": ["override"], "args": ["1"]}
    algorithm = request_of(body)["AlgorithmSpecification"]
    assert (algorithm["ContainerEntrypoint"], algorithm["ContainerArguments"]) == (["override"], ["1"])


def spell(name: str, spelling: str) -> str:
    if spelling == "snake":
        return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    return name[0].lower() + name[1:] if spelling == "camel" else name


@pytest.mark.parametrize("spelling", ["snake", "camel", "exact"])
def test_top_level_keys_in_any_case_q7(spelling: str) -> None:
    names = {
        "OutputDataConfig": {"S3OutputPath": "s3://x/y"},
        "TrainingJobName": "my-name",
        "RoleArn": "my-role",
        "Environment": {"A": "1"},
        "Tags": [{"Key": "team", "Value": "v"}],
        "EnableManagedSpotTraining": False,
    }
    spelled = {spell(name, spelling): value for name, value in names.items()}
    arguments = {**sagemaker_args(OutputDataConfig=None, RoleArn=None), **spelled}
    request = request_of(message(arguments))
    assert set(request) <= set(TOP_LEVEL)
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://x/y"}
    assert request["TrainingJobName"] == "my-name"
    assert request["RoleArn"] == "arn:aws:iam::123456789012:role/my-role"
    assert request["Environment"]["A"] == "1"
    assert request["Tags"][0] == {"Key": "team", "Value": "v"}
    assert request["EnableManagedSpotTraining"] is False


@pytest.mark.parametrize("first", ["RoleArn", "role_arn"])
def test_the_exact_spelling_wins_q7(first: str) -> None:
    values = {"RoleArn": "exact", "role_arn": "snake"}
    ordered = {first: values.pop(first), **values}
    request = request_of(message({**sagemaker_args(RoleArn=None), **ordered}))
    assert request["RoleArn"].endswith("role/exact")


def test_unknown_keys_are_left_for_limits_to_name_q7() -> None:
    assert request_of(message(sagemaker_args(not_a_key=1)))["not_a_key"] == 1


def test_null_is_absent_and_values_are_text_q8() -> None:
    arguments = sagemaker_args(
        Environment={"I": 3, "F": 0.5, "B": True, "N": None, "O": {"a": [1]}, "S": "s"},
        VpcConfig={"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"], "Nothing": None},
    )
    request = request_of(message({**arguments, "Tags": None, "InputDataConfig": None, "Environment2": None}))
    given = {k: v for k, v in request["Environment"].items() if len(k) == 1}
    assert given == {"I": "3", "F": "0.5", "B": "true", "O": '{"a": [1]}', "S": "s"}
    assert len(request["Tags"]) == 3
    assert "InputDataConfig" not in request
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}


def test_reserved_variables_are_refused_by_name_q9() -> None:
    variables = {"WANDB_RUN_ID": "other", "LAUNCH_X": "1", "WANDB_API_KEY": "hush", "WANDB_MODE": "offline"}
    with pytest.raises(BadMessage) as caught:
        request_of(message(sagemaker_args(Environment=variables)))
    assert paths(caught.value) == [
        f"{SAGEMAKER}.Environment.{name}" for name in ("WANDB_RUN_ID", "LAUNCH_X", "WANDB_API_KEY")
    ]
    assert "hush" not in str(caught.value)


def test_repeating_the_worker_s_own_value_is_fine_q9() -> None:
    variables = {"WANDB_PROJECT": "${project_name}", "WANDB_MODE": "offline"}
    environment = request_of(message(sagemaker_args(Environment=variables)))["Environment"]
    assert (environment["WANDB_PROJECT"], environment["WANDB_MODE"]) == ("vision", "offline")


def test_names_and_tags_are_made_valid_q17() -> None:
    body = message(sagemaker_args(TrainingJobName="${project_name}_${run_id}"), run_id="ab_é*.1")
    request = request_of(body)
    launch_id = launch_of(body).launch_id
    assert request["TrainingJobName"] == f"vision-ab-1-{launch_id[:8]}"
    assert request["Tags"] == tags("ab_é_.1", launch_id)
    assert request["Environment"]["WANDB_RUN_ID"] == "ab_é*.1"


@pytest.mark.parametrize(
    ("given", "account", "expected"),
    [
        (ROLE, ACCOUNT, ROLE),
        ("sm-exec", ACCOUNT, ROLE),
        ("/path/sm", ACCOUNT, "arn:aws:iam::123456789012:role/path/sm"),
        ("arn:aws-cn:iam::210987654321:role/x", ACCOUNT, "arn:aws-cn:iam::210987654321:role/x"),
        ("x", AccountFacts("1" * 12, "cn-north-1", "aws-cn"), "arn:aws-cn:iam::111111111111:role/x"),
        (
            "x",
            AccountFacts("1" * 12, "us-gov-west-1", "aws-us-gov"),
            "arn:aws-us-gov:iam::111111111111:role/x",
        ),
    ],
)
def test_role_arn_of_any_partition_q25(given: str, account: AccountFacts, expected: str) -> None:
    assert request_of(message(sagemaker_args(RoleArn=given)), account=account)["RoleArn"] == expected


@pytest.mark.parametrize("role", [None, "", 5, "arn:aws:iam::123456789012:user/x", "arn:aws:s3:::bucket"])
def test_what_is_no_role_q25(role: Any) -> None:
    assert refused(message(sagemaker_args(RoleArn=role))) == [f"{SAGEMAKER}.RoleArn"]


def test_a_training_image_beats_job_built_image_and_docker_image_q27() -> None:
    arguments = sagemaker_args(AlgorithmSpecification={"TrainingImage": "user:1"})
    body = message(arguments, job="a/b/c:v1", overrides={"entry_point": ["python"]})
    assert request_of(body, image=BUILT)["AlgorithmSpecification"] == {
        "TrainingImage": "user:1",
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["python"],
    }


def test_an_image_for_the_launch_replaces_its_docker_image() -> None:
    request = request_of(message(), image=BUILT)
    assert request["AlgorithmSpecification"]["TrainingImage"] == BUILT


@pytest.mark.parametrize("region", ["us-east-1", None, ""])
def test_region_and_profile_are_not_for_sagemaker_q29(region: str | None) -> None:
    arguments = {
        **sagemaker_args(profile="default", EcrRepoName="r", ecr_repo_name="r", builder={}),
        "region": region,
    }
    assert set(request_of(message(arguments))) <= set(TOP_LEVEL)


def test_another_region_is_refused_q29() -> None:
    assert refused(message(sagemaker_args(region="eu-west-1"))) == [f"{SAGEMAKER}.region"]


def test_the_worker_s_tags_are_its_own() -> None:
    given = [{"Key": "LaunchId", "Value": "x"}, {"Key": ["odd"]}, "odd"]
    assert refused(message(sagemaker_args(Tags=given))) == [f"{SAGEMAKER}.Tags[0]"]


def test_all_problems_at_once() -> None:
    arguments = {
        "TrainingJobName": 5,
        "AlgorithmSpecification": [],
        "Environment": "A=1",
        "Tags": {},
        "region": "mars",
    }
    names = [*arguments, "OutputDataConfig", "ResourceConfig", "StoppingCondition", "RoleArn"]
    assert sorted(refused(message(arguments))) == sorted(f"{SAGEMAKER}.{name}" for name in names)
