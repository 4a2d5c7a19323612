"""A training job that no ledger knows, read back as its launch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from worker.launch.record import LaunchState, RunRef
from worker.launch.retry import RetryRules
from worker.operating.forgotten import launch_of

ENVIRONMENT = {
    "LAUNCH_ID": "a" * 26,
    "WANDB_ENTITY": "acme",
    "WANDB_PROJECT": "vision",
    "WANDB_RUN_ID": "run-1",
    "WANDB_API_KEY": "5" * 40,
}
JOB = {
    "TrainingJobName": "resnet",
    "TrainingJobArn": "arn:resnet",
    "TrainingJobStatus": "InProgress",
    "SecondaryStatus": "Training",
    "CreationTime": datetime(2026, 1, 2, tzinfo=UTC),
    "AlgorithmSpecification": {
        "TrainingImage": "image",
        "MetricDefinitions": [{"Name": "loss", "Regex": "loss=(.*)"}],
    },
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 2},
    "Environment": ENVIRONMENT,
}
RULES = RetryRules({"spot": 2}, (("ml.m5.large", "ml.m5.xlarge"),))


def read(worker_key: str = "5" * 40, log_target: str = "companion", **changes: Any) -> Any:
    return launch_of({**JOB, **changes}, log_target=log_target, retry_rules=RULES, worker_key=worker_key)


def test_all_that_a_job_says_is_read() -> None:
    queue = {
        "WANDB_LAUNCH_QUEUE_NAME": "gpu",
        "WANDB_LAUNCH_QUEUE_ENTITY": "acme",
        "WANDB_LAUNCH_TRACE_ID": "item",
    }
    found = read(Environment={**ENVIRONMENT, **queue, "WANDB_NAME": "nightly", "WANDB_USERNAME": "anna"})
    assert (found.launch_id, found.run) == ("a" * 26, RunRef("acme", "vision", "run-1"))
    assert (found.state, found.owner, found.epoch) == (LaunchState.ACCEPTED, "", 1)
    assert (found.queue, found.queue_entity, found.item_id) == ("gpu", "acme", "item")
    assert (found.name, found.author, found.image) == ("nightly", "anna", "image")
    assert (found.instance_type, found.instance_count) == ("ml.m5.large", 2)
    assert found.metrics == (("loss", "loss=(.*)"),)
    assert (found.retries, found.instance_types) == ({"spot": 2}, ("ml.m5.large", "ml.m5.xlarge"))
    assert found.accepted_at == found.facts.created_at == datetime(2026, 1, 2, tzinfo=UTC).timestamp()
    assert found.request is None
    assert "5" * 40 not in str(found), "the ledger holds no key"


@pytest.mark.parametrize(
    ("name", "attempt"), [("resnet", 1), ("resnet-r2", 2), ("resnet-r12", 12), ("resnet-r0", 1), ("r3", 1)]
)
def test_the_attempt_is_in_the_name(name: str, attempt: int) -> None:
    assert read(TrainingJobName=name).attempt == attempt


def test_another_key_than_the_workers_is_the_launchs_own() -> None:
    assert not read().private_key
    assert read(worker_key="6" * 40).private_key
    without = {name: value for name, value in ENVIRONMENT.items() if name != "WANDB_API_KEY"}
    assert not read(Environment=without).private_key


@pytest.mark.parametrize("missing", ["LAUNCH_ID", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_RUN_ID"])
def test_a_job_that_does_not_say_whose_it_is_is_none_of_ours(missing: str) -> None:
    assert read(Environment={name: value for name, value in ENVIRONMENT.items() if name != missing}) is None
    assert read(Environment=None) is None


def test_metrics_are_read_where_there_is_a_history_only() -> None:
    assert read(log_target="files").metrics == ()
