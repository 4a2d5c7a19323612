"""Messages, launches and requests for the tests of the pure half; everything has a default that is valid."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from worker.errors import BadMessage
from worker.launch.identity import identity_parts, launch_id
from worker.launch.message import Launch, interpret, parse_message
from worker.training.plan import Plan, plan_launch
from worker.training.policy import Policy
from worker.training.request import AccountFacts, build_request

EXAMPLES = Path(__file__).parents[1] / "examples"
ACCOUNT = AccountFacts("123456789012", "us-east-1")
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1"
BUILT = "123456789012.dkr.ecr.us-east-1.amazonaws.com/built@sha256:" + "ab" * 32
BASE_URL = "https://api.wandb.ai"
SAGEMAKER = "$.runSpec.resource_args.sagemaker"


def sagemaker_args(**changes: Any) -> dict[str, Any]:
    """Valid `resource_args.sagemaker`; a change to None takes an argument out."""
    arguments: dict[str, Any] = {
        "RoleArn": "arn:aws:iam::123456789012:role/sm-exec",
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }
    arguments.update(changes)
    return {name: value for name, value in copy.deepcopy(arguments).items() if value is not None}


def message(sagemaker: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A valid message that launches an image; `spec` changes its runSpec."""
    return {
        "runQueueItemId": "item-1",
        "runSpec": {
            "entity": "acme",
            "project": "vision",
            "docker": {"docker_image": IMAGE},
            "resource": "sagemaker",
            "resource_args": {"sagemaker": sagemaker_args() if sagemaker is None else sagemaker},
            **spec,
        },
    }


def example(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((EXAMPLES / name).read_text())
    return value


def launch_of(body: dict[str, Any] | str) -> Launch:
    parsed = parse_message(body if isinstance(body, str) else json.dumps(body))
    parts = identity_parts(
        parsed, base_url=BASE_URL, deployment="default", queue_arn="arn:aws:sqs:q", message_id="m-1"
    )
    return interpret(parsed, launch_id=launch_id(parts), default_log_target="companion")


def request_of(
    body: dict[str, Any], *, image: str | None = None, account: AccountFacts = ACCOUNT, **macros: str
) -> dict[str, Any]:
    return build_request(
        launch_of(body), image=image, account=account, base_url=BASE_URL, deployment="default", macros=macros
    )


def plan_of(
    body: dict[str, Any], *, image: str | None = None, policy: Policy | None = None, attempt: int = 1
) -> Plan:
    return plan_launch(
        launch_of(body),
        image=image,
        account=ACCOUNT,
        base_url=BASE_URL,
        deployment="default",
        macros={},
        policy=policy or Policy(),
        attempt=attempt,
    )


def paths(error: BadMessage) -> list[str]:
    return [problem.path for problem in error.problems]
