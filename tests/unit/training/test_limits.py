"""SageMaker's limits: each refused with its place, all at once, and nothing valid refused."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.launches import IMAGE, SAGEMAKER, example, message, request_of, sagemaker_args
from worker.training.limits import check_limits, python_pattern
from worker.training.request import with_api_key

ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
MACHINE = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10}
GROUP = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "InstanceGroupName": "g"}
GROUPS = {"InstanceGroups": [GROUP], "VolumeSizeInGB": 10}
METRIC = {"Name": "loss", "Regex": "loss=(.*)"}


def channel(name: str, **changes: Any) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/prefix", **changes}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def create_training_job() -> Shape:
    model = ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")
    shape = model.operation_model("CreateTrainingJob").input_shape
    assert shape is not None
    return shape


def request(**changes: Any) -> dict[str, Any]:
    return {**request_of(message()), **changes}


def algorithm(**changes: Any) -> dict[str, Any]:
    return {"TrainingImage": IMAGE, "TrainingInputMode": "File", **changes}


def found(**changes: Any) -> list[str]:
    prefix = f"{SAGEMAKER}."
    return [problem.path.removeprefix(prefix) for problem in check_limits(request(**changes))]


@pytest.mark.parametrize("name", ["docker_image_launch", "direct_image_no_wandb", "image_job", "repo_job"])
def test_examples_are_within_the_limits(name: str) -> None:
    assert check_limits(request_of(example(f"{name}.json"), image=IMAGE)) == ()


VALID: list[dict[str, Any]] = [
    {"Environment": {f"A{i}": "x" * 512 for i in range(99)}},
    {"Environment": {"A": "two\nlines", "_b9": ""}},
    {"AlgorithmSpecification": algorithm(ContainerArguments=["x" * 256] * 100)},
    {"AlgorithmSpecification": {"AlgorithmName": "my-algorithm", "TrainingInputMode": "File"}},
    {"AlgorithmSpecification": algorithm(TrainingImage=f"{ECR}/a@sha256:" + "0" * 64)},
    {"Tags": [{"Key": f"clé {i}", "Value": "a b_c.d:e/f=g+h-i@j 漢字"} for i in range(50)]},
    {"ResourceConfig": {**MACHINE, "InstanceType": "ml.p99.48xlarge"}},
    {"ResourceConfig": {"InstanceGroups": [GROUP], "VolumeSizeInGB": 10}},
    {"StoppingCondition": {"MaxRuntimeInSeconds": 28 * 86400}},
    {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 3600},
    },
    {"RoleArn": "arn:aws-us-gov:iam::123456789012:role/service-role/x"},
    {"HyperParameters": {f"k{i:03}" + "x" * 252: "v" * 2500 for i in range(100)}},
    {"InputDataConfig": [channel(f"c{i}") for i in range(20)]},
    {"AlgorithmSpecification": algorithm(MetricDefinitions=[{"Name": "n" * 255, "Regex": "r" * 500}] * 40)},
    {
        "ResourceConfig": {
            **GROUPS,
            "InstanceGroups": [{**GROUP, "InstanceGroupName": f"g{i}"} for i in range(5)],
        }
    },
    {"ResourceConfig": GROUPS, "InputDataConfig": [channel("a", InstanceGroupNames=["g"])]},
    {"ResourceConfig": {**MACHINE, "KeepAlivePeriodInSeconds": 3600}},
    {"ResourceConfig": {**GROUPS, "KeepAlivePeriodInSeconds": 0}},
    {"StoppingCondition": {"MaxPendingTimeInSeconds": 7200}},
    {"StoppingCondition": {"MaxPendingTimeInSeconds": 2419200}},
    {"RetryStrategy": {"MaximumRetryAttempts": 1}},
    {"RetryStrategy": {"MaximumRetryAttempts": 30}},
    {"AlgorithmSpecification": algorithm(TrainingImage=f"{ECR}/" + "x" * (254 - len(ECR)))},
    {"CheckpointConfig": {"S3Uri": "s3://bucket/ckpt"}},
    {"EnableNetworkIsolation": True, "VpcConfig": {"Subnets": ["s"], "SecurityGroupIds": ["g"]}},
]


@pytest.mark.parametrize("changes", VALID)
def test_what_is_just_within_the_limits(changes: dict[str, Any]) -> None:
    assert found(**changes) == []


INVALID: list[tuple[dict[str, Any], list[str]]] = [
    ({"Environment": {f"A{i}": "" for i in range(100)}}, ["Environment"]),
    ({"Environment": {"A": "x" * 513}}, ["Environment.A"]),
    ({"Environment": {"A": 5}}, ["Environment.A"]),
    ({"Environment": {"9 x": ""}}, ['Environment["9 x"]']),
    ({"Environment": {"A" * 513: ""}}, ["Environment." + "A" * 513]),
    ({"AlgorithmSpecification": algorithm(ContainerArguments=["ok", "x" * 257])}, [".ContainerArguments[1]"]),
    ({"AlgorithmSpecification": algorithm(ContainerArguments=["a\nb"])}, [".ContainerArguments[0]"]),
    ({"AlgorithmSpecification": algorithm(ContainerArguments=["x"] * 101)}, [".ContainerArguments"]),
    ({"AlgorithmSpecification": algorithm(ContainerEntrypoint=[])}, [".ContainerEntrypoint"]),
    ({"AlgorithmSpecification": algorithm(TrainingInputMode="file")}, [".TrainingInputMode"]),
    ({"AlgorithmSpecification": algorithm(TrainingImage=f"{ECR}/" + "x" * 255)}, [".TrainingImage"]),
    ({"AlgorithmSpecification": algorithm(AlgorithmName="a")}, [""]),
    ({"AlgorithmSpecification": {"TrainingInputMode": "File"}}, [""]),
    ({"Tags": [{"Key": "k", "Value": "x" * 257}]}, ["Tags[0].Value"]),
    ({"Tags": [{"Key": "k", "Value": "no*stars"}]}, ["Tags[0].Value"]),
    ({"Tags": [{"Key": "k", "Value": "v"}] * 2}, ["Tags[1].Key"]),
    ({"Tags": [{"Key": "AWS:x", "Value": "v"}]}, ["Tags[0].Key"]),
    ({"Tags": [{"Key": f"k{i}", "Value": ""} for i in range(51)]}, ["Tags"]),
    ({"Tags": [{"Key": "k"}]}, ["Tags[0].Value"]),
    ({"Tags": ["k=v"]}, ["Tags[0]"]),
    ({"TrainingJobName": "a_b"}, ["TrainingJobName"]),
    ({"TrainingJobName": "a" * 64}, ["TrainingJobName"]),
    ({"RoleArn": "arn:aws:iam::${ACCT}:role/some-long-name"}, ["RoleArn"]),
    ({"RoleArn": "short"}, ["RoleArn"]),
    ({"HyperParameters": {"lr": 0.1}}, ["HyperParameters.lr"]),
    ({"HyperParameters": {"x": "y" * 2501}}, ["HyperParameters.x"]),
    ({"OutputDataConfig": {"S3OutputPath": "bucket/prefix"}}, ["OutputDataConfig.S3OutputPath"]),
    ({"OutputDataConfig": {}}, ["OutputDataConfig.S3OutputPath"]),
    ({"OutputDataConfig": None}, ["OutputDataConfig"]),
    ({"ResourceConfig": {**MACHINE, "InstanceCount": "1"}}, ["ResourceConfig.InstanceCount"]),
    ({"ResourceConfig": {**MACHINE, "InstanceCount": True}}, ["ResourceConfig.InstanceCount"]),
    ({"ResourceConfig": {**MACHINE, "InstanceCount": 1.0}}, ["ResourceConfig.InstanceCount"]),
    ({"ResourceConfig": {**MACHINE, "InstanceCount": 0}}, ["ResourceConfig.InstanceCount"]),
    ({"ResourceConfig": {**MACHINE, "InstanceCount": 2**31}}, ["ResourceConfig.InstanceCount"]),
    ({"ResourceConfig": {**MACHINE, "VolumeSizeInGB": 0}}, ["ResourceConfig.VolumeSizeInGB"]),
    (
        {"ResourceConfig": {"VolumeSizeInGB": 5}},
        ["ResourceConfig.InstanceType", "ResourceConfig.InstanceCount"],
    ),
    (
        {"ResourceConfig": {**MACHINE, "InstanceGroups": [GROUP]}},
        ["ResourceConfig.InstanceType", "ResourceConfig.InstanceCount"],
    ),
    ({"ResourceConfig": {**MACHINE, "instance_type": "x"}}, ["ResourceConfig.instance_type"]),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}}, ["StoppingCondition.MaxRuntimeInSeconds"]),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": 2419201}}, ["StoppingCondition.MaxRuntimeInSeconds"]),
    ({"StoppingCondition": {"MaxPendingTimeInSeconds": 60}}, ["StoppingCondition.MaxPendingTimeInSeconds"]),
    (
        {"EnableManagedSpotTraining": True, "StoppingCondition": {"MaxRuntimeInSeconds": 60}},
        ["StoppingCondition.MaxWaitTimeInSeconds"],
    ),
    (
        {"EnableManagedSpotTraining": True, "StoppingCondition": {"MaxWaitTimeInSeconds": 60}},
        ["StoppingCondition.MaxWaitTimeInSeconds"],
    ),
    ({"EnableManagedSpotTraining": "yes"}, ["EnableManagedSpotTraining"]),
    ({"RetryStrategy": {"MaximumRetryAttempts": 31}}, ["RetryStrategy.MaximumRetryAttempts"]),
    (
        {"InputDataConfig": [{"ChannelName": "a b"}]},
        ["InputDataConfig[0].DataSource", "InputDataConfig[0].ChannelName"],
    ),
    ({"output_data": 1}, ["output_data"]),
    ({"HyperParameters": {f"k{i}": "" for i in range(101)}}, ["HyperParameters"]),
    ({"HyperParameters": {"k" * 257: ""}}, ["HyperParameters." + "k" * 257]),
    ({"InputDataConfig": [channel(f"c{i}") for i in range(21)]}, ["InputDataConfig"]),
    ({"InputDataConfig": []}, ["InputDataConfig"]),
    ({"InputDataConfig": [channel("a"), channel("b"), channel("a")]}, ["InputDataConfig[2].ChannelName"]),
    (
        {"InputDataConfig": [channel("a", InstanceGroupNames=["g", "h"])], "ResourceConfig": GROUPS},
        ["InputDataConfig[0].DataSource.S3DataSource.InstanceGroupNames[1]"],
    ),
    (
        {"InputDataConfig": [channel("a", InstanceGroupNames=["g"])]},
        ["InputDataConfig[0].DataSource.S3DataSource.InstanceGroupNames[0]"],
    ),
    ({"AlgorithmSpecification": algorithm(MetricDefinitions=[METRIC] * 41)}, [".MetricDefinitions"]),
    (
        {"AlgorithmSpecification": algorithm(MetricDefinitions=[{"Name": "n" * 256, "Regex": "r" * 501}])},
        [".MetricDefinitions[0].Name", ".MetricDefinitions[0].Regex"],
    ),
    (
        {
            "ResourceConfig": {
                **GROUPS,
                "InstanceGroups": [{**GROUP, "InstanceGroupName": f"g{i}"} for i in range(6)],
            }
        },
        ["ResourceConfig.InstanceGroups"],
    ),
    (
        {"ResourceConfig": {**GROUPS, "InstanceGroups": [GROUP, GROUP]}},
        ["ResourceConfig.InstanceGroups[1].InstanceGroupName"],
    ),
    (
        {"ResourceConfig": {**GROUPS, "InstanceGroups": [{**GROUP, "InstanceCount": 0}]}},
        ["ResourceConfig.InstanceGroups[0].InstanceCount"],
    ),
    (
        {"ResourceConfig": {**MACHINE, "KeepAlivePeriodInSeconds": 3601}},
        ["ResourceConfig.KeepAlivePeriodInSeconds"],
    ),
    (
        {"ResourceConfig": {**GROUPS, "KeepAlivePeriodInSeconds": 60}},
        ["ResourceConfig.KeepAlivePeriodInSeconds"],
    ),
    (
        {
            "ResourceConfig": {**MACHINE, "KeepAlivePeriodInSeconds": 60},
            "EnableManagedSpotTraining": True,
            "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
        },
        ["ResourceConfig.KeepAlivePeriodInSeconds"],
    ),
    (
        {"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}},
        ["StoppingCondition.MaxWaitTimeInSeconds"],
    ),
    (
        {"StoppingCondition": {"MaxPendingTimeInSeconds": 2419201}},
        ["StoppingCondition.MaxPendingTimeInSeconds"],
    ),
    ({"RetryStrategy": {"MaximumRetryAttempts": 0}}, ["RetryStrategy.MaximumRetryAttempts"]),
    ({"CheckpointConfig": {"S3Uri": "bucket"}}, ["CheckpointConfig.S3Uri"]),
    ({"VpcConfig": {"Subnets": ["subnet-1"]}}, ["VpcConfig.SecurityGroupIds"]),
    (
        {"VpcConfig": {"Subnets": [f"s-{i}" for i in range(17)], "SecurityGroupIds": ["sg"]}},
        ["VpcConfig.Subnets"],
    ),
    ({"Tags": [{"Key": "k" * 129, "Value": ""}]}, ["Tags[0].Key"]),
]


@pytest.mark.parametrize(("changes", "expected"), INVALID)
def test_what_is_beyond_the_limits(changes: dict[str, Any], expected: list[str]) -> None:
    spec = "AlgorithmSpecification"
    assert found(**changes) == [spec + path if path[:1] in ("", ".") else path for path in expected]


def test_all_problems_at_once_with_what_to_do() -> None:
    problems = check_limits(
        request(
            Environment={"WANDB_ARTIFACTS": "x" * 513},
            ResourceConfig={**MACHINE, "InstanceTyp": "x"},
            RoleArn="arn:aws:iam::${ACCT}:role/some-long-name",
            AlgorithmSpecification=algorithm(ContainerArguments=["a\nb"]),
        )
    )
    remedies = {problem.path.removeprefix(f"{SAGEMAKER}."): problem.remedy for problem in problems}
    assert remedies["ResourceConfig.InstanceTyp"] == "did you mean InstanceType?"
    assert "LAUNCH_MACRO_" in remedies["RoleArn"]
    assert "line breaks" in remedies["AlgorithmSpecification.ContainerArguments[0]"]
    assert "fewer artifacts" in remedies["Environment.WANDB_ARTIFACTS"]


def test_no_value_is_quoted() -> None:
    hush = "hush" * 200
    problems = check_limits(
        request(Environment={"A": hush}, HyperParameters={"b": [hush]}, RoleArn=hush * 10)
    )
    assert len(problems) == 3
    assert not any("hush" in str(problem) for problem in problems)


def test_artifacts_beyond_one_variable_q6() -> None:
    artifacts = {f"dataset-{i}:latest": {"id": "x" * 40} for i in range(10)}
    body = message(overrides={"artifacts": artifacts})
    assert [p.path for p in check_limits(request_of(body))] == [f"{SAGEMAKER}.Environment.WANDB_ARTIFACTS"]


def test_a_config_of_more_than_100_chunks_q6() -> None:
    body = message(overrides={"run_config": {f"k{i}": "v" * 1000 for i in range(60)}})
    assert [p.path for p in check_limits(request_of(body))] == [f"{SAGEMAKER}.Environment"]


def test_room_is_kept_for_the_key_q6() -> None:
    full = request(Environment={f"A{i}": "" for i in range(99)})
    assert check_limits(full) == check_limits(with_api_key(full, "k" * 40)) == ()
    over = request(Environment={f"A{i}": "" for i in range(100)})
    assert len(check_limits(over)) == 1


@pytest.mark.parametrize("key", ["not_a_key", "Environments", "NotAKey"])
def test_unknown_keys_are_named_q7(key: str) -> None:
    made = request_of(message(sagemaker_args(**{key: 1})))
    assert [problem.path for problem in check_limits(made)] == [f"{SAGEMAKER}.{key}"]


@pytest.mark.parametrize(
    "host",
    [
        ECR,
        "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
        "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
        "123456789012.dkr-ecr.us-east-1.on.aws",
        "123456789012.dkr-ecr-fips.us-east-1.on.aws",
        "127.0.0.1:5566",
        "localhost:5000",
        "registry:5000",
    ],
)
def test_registries_that_can_be_pulled_from_q24_q26(host: str) -> None:
    assert found(AlgorithmSpecification=algorithm(TrainingImage=f"{host}/train:1")) == []


@pytest.mark.parametrize("name", ["a b", "Train:1", "train:", "train@sha256:ab", "${project_name}:1", "a//b"])
def test_what_is_not_the_name_of_an_image_is_refused(name: str) -> None:
    config = {"TrainingRepositoryAccessMode": "Vpc"}
    for more in ({}, {"TrainingImageConfig": config}):
        places = found(AlgorithmSpecification=algorithm(TrainingImage=f"{ECR}/{name}", **more))
        assert places == ["AlgorithmSpecification.TrainingImage"]


@pytest.mark.parametrize(
    "image",
    ["pytorch/pytorch:2.3.0", "python:3.12", "ghcr.io/a/b", "public.ecr.aws/a/b", f"{ECR}.evil.com/a", ECR],
)
def test_images_outside_of_ecr_need_an_image_config_q26(image: str) -> None:
    assert found(AlgorithmSpecification=algorithm(TrainingImage=image)) == [
        "AlgorithmSpecification.TrainingImage"
    ]
    config = {"TrainingRepositoryAccessMode": "Vpc"}
    assert found(AlgorithmSpecification=algorithm(TrainingImage=image, TrainingImageConfig=config)) == []


def shapes_of(shape: Shape, path: str = "") -> dict[str, Shape]:
    found = {path: shape}
    for name, member in getattr(shape, "members", {}).items():
        found.update(shapes_of(member, f"{path}.{name}"))
    for name in ("member", "key", "value"):
        if hasattr(shape, name):
            found.update(shapes_of(getattr(shape, name), f"{path}<{name}>"))
    return found


SHAPES = shapes_of(create_training_job())


def test_every_shape_of_the_model_is_understood() -> None:
    """A newer botocore with another type or a pattern that `re` cannot compile fails here, not in production."""
    known = {"structure", "map", "list", "string", "boolean", "integer", "long"}
    assert {shape.type_name for shape in SHAPES.values()} == known
    patterns = {str(p) for s in SHAPES.values() if (p := s.metadata.get("pattern"))}
    assert len(patterns) > 10
    assert {pattern for pattern in patterns if python_pattern(pattern) is None} == set()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
MEMBERS = sorted({name for shape in SHAPES.values() for name in getattr(shape, "members", {})})
TREES = st.recursive(
    JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(MEMBERS), TREES))
def test_whatever_botocore_refuses_is_refused(changes: dict[str, Any]) -> None:
    made = request(**changes)
    report = ParamValidator().validate(made, create_training_job())
    problems = check_limits(made)
    assert problems or not report.has_errors()
    assert all(problem.path.startswith(SAGEMAKER) for problem in problems)
    assert not any("botocore" in str(problem) or "\n" in str(problem) for problem in problems)
