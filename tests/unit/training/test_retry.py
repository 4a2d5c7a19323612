"""Whether a job is tried again, as what, on which machines, and with which request."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.launches import message, paths, plan_of, sagemaker_args
from tests.unit.records import record
from worker.errors import BadMessage
from worker.launch.message import parse_message
from worker.launch.record import JobFacts, LaunchRecord, PastAttempt
from worker.launch.retry import MAX_RETRIES, RetryRules, parse_instance_types, parse_retry
from worker.training.limits import check_limits
from worker.training.policy import Policy
from worker.training.retry import attempt_by_hand, next_attempt, rebuilt_request, retry_kind

CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using another ML type."
)
INTERNAL = "InternalServerError:  We encountered an internal error.  Please try again."
ALL = {"capacity": 3, "spot": 3, "internal": 3}


def failed(reason: str, *steps: str, spot: bool = False) -> JobFacts:
    transitions = tuple((step, float(at)) for at, step in enumerate((*steps, "Failed")))
    return JobFacts("Failed", "Failed", reason, transitions=transitions, spot=spot)


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (failed(CAPACITY, "Starting"), "capacity"),
        (failed(CAPACITY, "Starting", spot=True), "capacity"),
        (failed(INTERNAL, "Starting", "Training"), "internal"),
        (failed("InternalServerError: We encountered an internal error. Please try again."), "internal"),
        (failed("AlgorithmError: InternalServerError in my code, exit code: 1", "Training"), None),
        (failed("AlgorithmError: exit code: 1", "Training"), None),
        (failed('AlgorithmError: ErrorMessage "ValueError: insufficient capacity", exit code: 1'), None),
        (failed("AlgorithmError: my CapacityError, exit code: 1", "Training", spot=True), None),
        (failed("ClientError: Please use an instance type with more memory"), None),
        (failed("the machines were taken", "Training", "Interrupted", spot=True), "spot"),
        (failed("AlgorithmError: exit code: 1", "Interrupted", "Training", spot=True), None),
        (failed("the machines were taken", "Training", "Interrupted"), None),
        (JobFacts("Stopped", "MaxWaitTimeExceeded", spot=True), "spot"),
        (JobFacts("Stopped", "MaxWaitTimeExceeded"), None),
        (JobFacts("Stopped", "MaxRuntimeExceeded", spot=True), None),
        (JobFacts("Stopped", "Stopped", spot=True), None),
        (JobFacts("Completed", "Completed"), None),
    ],
)
def test_only_ends_that_are_not_the_codes_fault_are_tried_again(facts: JobFacts, kind: str | None) -> None:
    assert retry_kind(facts) == kind


def ended(facts: JobFacts, **changes: Any) -> LaunchRecord:
    values: dict[str, Any] = {"facts": facts, "retries": ALL, "instance_type": "ml.g5.xlarge", **changes}
    return record(**values)


def past(number: int, kind: str) -> PastAttempt:
    return PastAttempt(f"job-{number}", "ml.g5.xlarge", kind, "gone")


def test_each_kind_has_a_budget_of_its_own() -> None:
    used = tuple(past(n, "capacity") for n in range(3))
    assert next_attempt(ended(failed(CAPACITY), attempts=used, attempt=4)) is None
    following = next_attempt(ended(failed(INTERNAL), attempts=used, attempt=4))
    assert following is not None
    assert (following.number, following.earlier_of_kind) == (5, 0)
    assert next_attempt(ended(failed(CAPACITY), retries={})) is None, (
        "without a budget nothing is tried again"
    )


@pytest.mark.parametrize("field", ["stop_reason", "stop_asked", "given_up"])
def test_what_was_stopped_or_given_up_is_not_tried_again(field: str) -> None:
    assert next_attempt(ended(failed(CAPACITY), **{field: "Stop was pressed."})) is None


def test_attempts_have_names_of_their_own() -> None:
    second = next_attempt(ended(failed(CAPACITY)))
    assert second is not None
    assert (second.job_name, second.past.job_name, second.past.reason) == ("job-1-r2", "job-1", CAPACITY)
    third = next_attempt(ended(failed(CAPACITY), attempt=2, job_name="job-1-r2", attempts=(second.past,)))
    assert third is not None
    assert third.job_name == "job-1-r3"


def test_names_stay_valid_however_long_the_first_was() -> None:
    current = ended(failed(CAPACITY), job_name="j" * 63, launch_id="abcdefghijklmnopqrstuvwxyz")
    names = {current.job_name}
    for _ in range(12):
        following = next_attempt(replace(current, attempts=()))
        assert following is not None
        assert len(following.job_name) <= 63
        assert following.job_name.endswith(f"-r{following.number}")
        names.add(following.job_name)
        current = replace(current, job_name=following.job_name, attempt=following.number)
    assert len(names) == 13


def test_after_a_want_of_capacity_the_next_type_has_its_turn_and_spot_keeps_its_own() -> None:
    types = ("ml.g5.xlarge", "ml.g5.2xlarge", "ml.g4dn.xlarge")
    taken = []
    current = ended(failed(CAPACITY), instance_types=types)
    for _ in range(3):
        following = next_attempt(current)
        assert following is not None
        taken.append(following.instance_type)
        current = replace(current, instance_type=following.instance_type)
    assert taken == ["ml.g5.2xlarge", "ml.g4dn.xlarge", "ml.g5.xlarge"]
    spot = next_attempt(ended(JobFacts("Stopped", "MaxWaitTimeExceeded", spot=True), instance_types=types))
    assert spot is not None
    assert spot.instance_type == "ml.g5.xlarge"


def test_whoever_asks_by_hand_gets_an_attempt_and_whole_budgets_again() -> None:
    used = tuple(past(n, "capacity") for n in range(3))
    spent = ended(failed(CAPACITY), attempts=used, attempt=4, job_name="job-1-r4", retries={"capacity": 3})
    assert next_attempt(spent) is None
    asked = attempt_by_hand(spent)
    assert (asked.kind, asked.number, asked.job_name) == ("by hand", 5, "job-1-r5")
    assert (asked.past.job_name, asked.past.reason) == ("job-1-r4", CAPACITY)
    again = replace(spent, attempts=(*used, asked.past), attempt=5, job_name=asked.job_name)
    following = next_attempt(again)
    assert following is not None
    assert (following.kind, following.number, following.earlier_of_kind) == ("capacity", 6, 0)


def test_what_was_stopped_may_be_asked_for_again() -> None:
    stopped = ended(JobFacts("Stopped", "Stopped"), stop_reason="Anna wanted it.")
    assert attempt_by_hand(stopped).past.reason == "This worker stopped the job: Anna wanted it."


DESCRIBED: dict[str, Any] = {
    "TrainingJobName": "job-1",
    "TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/job-1",
    "TrainingJobStatus": "Failed",
    "SecondaryStatus": "Failed",
    "FailureReason": CAPACITY,
    "SecondaryStatusTransitions": [{"Status": "Failed"}],
    "ModelArtifacts": {"S3ModelArtifacts": "s3://out/model.tar.gz"},
    "WarmPoolStatus": {"Status": "Terminated"},
    "BillableTimeInSeconds": 0,
    "HyperParameters": {"lr": "0.1"},
    "AlgorithmSpecification": {
        "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1",
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "loss", "Regex": "loss=(.*)"}],
        "AddedByANewerApi": True,
    },
    "RoleArn": "arn:aws:iam::123456789012:role/sm-exec",
    "InputDataConfig": [],
    "OutputDataConfig": {"S3OutputPath": "s3://out/x"},
    "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10},
    "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 90},
    "EnableManagedSpotTraining": True,
    "CheckpointConfig": {"S3Uri": "s3://out/checkpoints"},
    "VpcConfig": None,
    "Environment": {"LAUNCH_ID": "launch-1", "WANDB_API_KEY": "secret", "WANDB_RUN_ID": "run-1", "MODE": "x"},
}


def test_the_request_is_rebuilt_from_what_sagemaker_tells() -> None:
    following = next_attempt(ended(failed(CAPACITY), instance_types=("ml.g5.xlarge", "ml.g5.2xlarge")))
    assert following is not None
    tags = [
        {"Key": "LaunchId", "Value": "launch-1"},
        {"Key": "team", "Value": "vision"},
        {"Key": "aws:createdBy", "Value": "x"},
    ]
    request = rebuilt_request(DESCRIBED, tags, following)
    assert "secret" not in str(request)
    assert check_limits(request) == ()
    kept = ("HyperParameters", "RoleArn", "OutputDataConfig", "StoppingCondition", "CheckpointConfig")
    assert {name: request.pop(name) for name in kept} == {name: DESCRIBED[name] for name in kept}
    assert request.pop("EnableManagedSpotTraining") is True
    assert request == {
        "TrainingJobName": "job-1-r2",
        "AlgorithmSpecification": {
            k: v for k, v in DESCRIBED["AlgorithmSpecification"].items() if k != "AddedByANewerApi"
        },
        "ResourceConfig": {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10},
        "Environment": {
            "LAUNCH_ID": "launch-1",
            "WANDB_RUN_ID": "run-1",
            "MODE": "x",
            "WANDB_RESUME": "allow",
        },
        "Tags": tags[:2],
    }


def test_an_algorithm_keeps_no_image_of_its_own() -> None:
    following = next_attempt(ended(failed(CAPACITY)))
    assert following is not None
    algorithm = {"AlgorithmName": "xgboost", "TrainingImage": "x", "TrainingInputMode": "File"}
    request = rebuilt_request({**DESCRIBED, "AlgorithmSpecification": algorithm}, [], following)
    assert request["AlgorithmSpecification"] == {"AlgorithmName": "xgboost", "TrainingInputMode": "File"}


def test_what_operators_and_messages_may_write() -> None:
    assert parse_retry("") == {}
    assert parse_retry(" capacity=3, spot = 5,internal=0") == {"capacity": 3, "spot": 5, "internal": 0}
    for wrong in ("capacity", "capacity=-1", "capacity=3;spot=5", "oom=1", "capacity=3 spot=5", "spot=99"):
        with pytest.raises(ValueError, match=r"form|more than"):
            parse_retry(wrong)
    assert parse_retry(f"spot={MAX_RETRIES}") == {"spot": MAX_RETRIES}
    assert parse_instance_types("ml.a.x, ml.b.x ;ml.c.x") == (("ml.a.x", "ml.b.x"), ("ml.c.x",))
    with pytest.raises(ValueError, match=r"g5\.xlarge"):
        parse_instance_types("ml.m5.large,g5.xlarge")


def test_a_message_overrules_the_operator() -> None:
    rules = RetryRules({"capacity": 1}, (("ml.a.x", "ml.b.x", "ml.c.x"),))
    assert rules.of("ml.m5.large", None, ()) == {"retries": {"capacity": 1}, "instance_types": ()}
    assert rules.of("ml.b.x", None, ())["instance_types"] == ("ml.b.x", "ml.c.x", "ml.a.x")
    assert rules.of("ml.b.x", "spot=2", ("ml.d.x",)) == {
        "retries": {"spot": 2},
        "instance_types": ("ml.b.x", "ml.d.x"),
    }


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"retry": "capacity"}, "$.options.retry"),
        ({"retry": "capacity=21"}, "$.options.retry"),
        ({"instance_types": ["ml.g5.xlarge", "g5"]}, "$.options.instance_types[1]"),
        ({"instance_types": "ml.g5.xlarge"}, "$.options.instance_types"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], path: str) -> None:
    with pytest.raises(BadMessage) as caught:
        parse_message(json.dumps({**message(), "options": options}))
    assert paths(caught.value) == [path]


def test_every_type_of_the_list_is_held_to_the_policy_at_once() -> None:
    body = {**message(), "options": {"instance_types": ["ml.m5.large", "ml.p5.48xlarge"]}}
    with pytest.raises(BadMessage) as caught:
        plan_of(body, policy=Policy(instance_types=("ml.m5.*",)))
    assert (caught.value.code, paths(caught.value)) == ("LW-POLICY", ["$.options.instance_types[1]"])
    plan_of(body)


def test_instance_groups_have_no_list() -> None:
    groups = [{"InstanceType": "ml.m5.large", "InstanceCount": 1, "InstanceGroupName": "a"}]
    arguments = sagemaker_args(ResourceConfig={"InstanceGroups": groups, "VolumeSizeInGB": 10})
    with pytest.raises(BadMessage) as caught:
        plan_of({**message(arguments), "options": {"instance_types": ["ml.m5.large"]}})
    assert paths(caught.value) == ["$.options.instance_types"]
