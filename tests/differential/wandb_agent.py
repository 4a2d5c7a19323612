"""W&B's own agent code, from a run spec to the CreateTrainingJob call; only AWS and W&B's server are played."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from wandb.sdk.launch._project_spec import LaunchProject
from wandb.sdk.launch.runner.sagemaker_runner import SageMakerRunner

API_KEY = "a" * 40
BASE_URL = "https://api.wandb.ai"


@dataclass(frozen=True)
class Job:
    """What a fetched job artifact brings, as `configure_launch_project` (wandb/apis/public/jobs.py) hands it on."""

    image: str = ""
    """Of an image job."""
    entry_point: tuple[str, ...] = ()


@dataclass
class _Api:
    """What a LaunchProject reads of W&B's client."""

    api_key: str = API_KEY
    settings: Mapping[str, str] = field(default_factory=lambda: {"base_url": BASE_URL})


class _Client:
    """STS, SageMaker and Logs, of which the runner calls two operations."""

    def __init__(self, account: str, created: list[dict[str, Any]]) -> None:
        self.meta = SimpleNamespace(region_name="us-east-1")
        self._account = account
        self._created = created

    def get_caller_identity(self) -> dict[str, str]:
        return {"Account": self._account}

    def create_training_job(self, **request: Any) -> dict[str, str]:
        self._created.append(request)
        return {"TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/x"}


class _Environment:
    """The part of AwsEnvironment that the runner uses."""

    def __init__(self, account: str, partition: str, created: list[dict[str, Any]]) -> None:
        self._account = account
        self._partition = partition
        self._created = created

    async def get_session(self) -> _Environment:
        return self

    async def get_partition(self) -> str:
        return self._partition

    def client(self, _service: str) -> _Client:
        return _Client(self._account, self._created)


def wandb_request(
    message: Mapping[str, Any],
    *,
    image: str,
    job: Job | None = None,
    account: str = "123456789012",
    partition: str = "aws",
) -> dict[str, Any]:
    """The CreateTrainingJob call of W&B's agent for a message, or whatever it raises.

    `image`: the one that was built for a job."""
    created: list[dict[str, Any]] = []
    api = _Api()
    project = LaunchProject.from_spec(copy.deepcopy(dict(message["runSpec"])), api)  # type: ignore[arg-type]
    # The agent (wandb/sdk/launch/agent/agent.py) sets these before it fetches the job.
    project.queue_name = message.get("queue")  # type: ignore[assignment]
    project.queue_entity = message.get("entity")  # type: ignore[assignment]
    project.run_queue_item_id = message["runQueueItemId"]
    if job is not None:
        if job.image:
            project.docker_image = job.image
        if job.entry_point:
            project.set_job_entry_point(list(job.entry_point))
    environment: Any = _Environment(account, partition, created)
    registry: Any = None
    runner = SageMakerRunner(api, {"SYNCHRONOUS": False}, environment, registry)  # type: ignore[arg-type]
    asyncio.run(runner.run(project, project.docker_image or image))
    return created[0]
