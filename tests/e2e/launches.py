"""Launch messages with shell scripts in them, and what must become of each."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.launch.identity import launch_id
from worker.local.stack import ENTITY, LocalServices

PROJECT = "e2e"


@dataclass(frozen=True, kw_only=True)
class LaunchCase:
    """A launch message, and what must become of it."""

    message: Mapping[str, Any]
    launch_id: str
    run_id: str
    job_name: str
    printed: Sequence[str]
    """The console lines of each host; `{host}` stands for its name."""
    hosts: int = 1

    @property
    def body(self) -> str:
        return json.dumps(self.message)


def script(lines: Sequence[str], pause: float) -> str:
    """Shell code that prints `lines` with a pause after each."""
    host = "'\"$SM_CURRENT_HOST\"'"
    return "; ".join(
        f"printf '%s\\n' {shlex.quote(line).replace('{host}', host)}; sleep {pause}" for line in lines
    )


def arguments(code: str) -> list[str]:
    """`sh -c` arguments that run `code`; SageMaker allows 256 characters each."""
    size = 240
    parts = [code[start : start + size] for start in range(0, len(code), size)]
    return ['eval "$(printf %s "$@")"', "sh", *parts]


def until_stopped(then: str = "exit") -> str:
    """Shell code that lives until SIGTERM, and does `then`."""
    return f"trap {shlex.quote(then)} TERM; sleep 600 & wait"


def numbered(count: int, what: str = "step") -> list[str]:
    return [f"{what} {number} on {{host}}" for number in range(count)]


@dataclass(kw_only=True)
class Launches:
    """Makes launches for one deployment on the stack."""

    services: LocalServices
    image: str
    deployment: str

    def launch(
        self,
        lines: Sequence[str] = (),
        *,
        pause: float = 0.15,
        tail: str = "true",
        hosts: int = 1,
        max_runtime: int = 120,
        item_id: str = "",
        job_name: str = "",
        image: str = "",
        instance_type: str = "ml.m5.large",
        log_target: str = "",
        **spec: Any,
    ) -> LaunchCase:
        """A launch that prints `lines` and then does `tail`; `spec` goes into the runSpec."""
        unique = uuid.uuid4().hex[:10]
        run_id = f"run-{unique}"
        sagemaker: dict[str, Any] = {
            "RoleArn": self.services.role_arn,
            "ResourceConfig": {"InstanceType": instance_type, "InstanceCount": hosts, "VolumeSizeInGB": 1},
            "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
            "StoppingCondition": {"MaxRuntimeInSeconds": max_runtime},
            **({"TrainingJobName": job_name} if job_name else {}),
        }
        code = "; ".join(part for part in (script(lines, pause), tail) if part)
        message: dict[str, Any] = {
            "runSpec": {
                "entity": ENTITY,
                "project": PROJECT,
                "run_id": run_id,
                "docker": {"docker_image": image or self.image},
                "overrides": {"entry_point": ["sh", "-c"], "args": arguments(code)},
                "resource": "sagemaker",
                "resource_args": {"sagemaker": sagemaker},
                **spec,
            }
        }
        if log_target:
            message["options"] = {"log_target": log_target}
        if item_id:
            message["runQueueItemId"] = item_id
            identity = launch_id((self.services.wandb.base_url, ENTITY, item_id))
        else:
            message["launchId"] = unique
            identity = launch_id(("direct", self.deployment, unique))
        return LaunchCase(
            message=message,
            launch_id=identity,
            run_id=run_id,
            job_name=job_name or run_id,
            printed=lines,
            hosts=hosts,
        )
