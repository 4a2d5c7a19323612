"""What runs a training job's containers: the port, and what every executor gives them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class ImageNotAvailable(Exception):
    """The training image cannot be had; the message becomes the job's FailureReason."""


class EntrypointNotStarted(Exception):
    """The container exists, its entrypoint cannot be run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """One instance of a training job."""

    job_name: str
    job_arn: str
    region: str
    host: str
    """`algo-1`, `algo-2`, …"""
    hosts: tuple[str, ...]
    image: str
    entrypoint: tuple[str, ...] = ()
    """Empty: the image's own, with the argument `train`, as SageMaker runs it."""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[Mapping[str, Any], ...] = ()
    network_isolation: bool = False

    def variables(self, root: str) -> dict[str, str]:
        """The environment of the container, with `root` as its /opt/ml.

        TRAINING_JOB_* come from SageMaker; SM_* are those that the SageMaker training toolkit sets."""
        return {
            "TRAINING_JOB_NAME": self.job_name,
            "TRAINING_JOB_ARN": self.job_arn,
            "AWS_REGION": self.region,
            "SM_CURRENT_HOST": self.host,
            "SM_HOSTS": json.dumps(self.hosts),
            "SM_HPS": json.dumps(dict(self.hyperparameters)),
            "SM_NUM_GPUS": "0",
            "SM_INPUT_DIR": f"{root}/input",
            "SM_INPUT_CONFIG_DIR": f"{root}/input/config",
            "SM_MODEL_DIR": f"{root}/model",
            "SM_OUTPUT_DIR": f"{root}/output",
            "SM_OUTPUT_DATA_DIR": f"{root}/output/data",
            **self.environment,
        }

    def config_files(self) -> dict[str, bytes]:
        """The files of input/config (SageMaker developer guide, 'How SageMaker provides training information')."""
        resource = {
            "current_host": self.host,
            "hosts": list(self.hosts),
            "network_interface_name": "eth0",
        }
        content: dict[str, Any] = {
            "hyperparameters.json": dict(self.hyperparameters),
            "inputdataconfig.json": {channel["ChannelName"]: dict(channel) for channel in self.channels},
            "resourceconfig.json": resource,
        }
        return {name: json.dumps(value).encode() for name, value in content.items()}


FOLDERS = ("input", "input/config", "input/data", "model", "output", "output/data", "checkpoints")
"""What lies in /opt/ml before the container starts."""


class Instance(Protocol):
    """One container, or what stands for it."""

    async def start(self) -> None:
        """Run the entrypoint. Raises `EntrypointNotStarted`."""
        ...

    def lines(self) -> AsyncIterator[str]:
        """stdout and stderr, line by line, until the end."""
        ...

    async def wait(self) -> int:
        """Exit code, once it has ended; 128 + n after signal n."""
        ...

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds."""
        ...

    async def failure(self) -> str:
        """/opt/ml/output/failure, at most 1,024 characters; empty if there is none."""
        ...

    async def remove(self) -> None:
        """Leave nothing behind; a running container is killed."""
        ...


class Executor(Protocol):
    """Makes instances."""

    @property
    def name(self) -> str:
        """`docker` or `process`, for people."""
        ...

    async def prepare(self, image: str) -> None:
        """Get the image. Raises `ImageNotAvailable`."""
        ...

    async def create(self, spec: InstanceSpec) -> Instance:
        """An instance that has not been started."""
        ...

    async def close(self) -> None:
        """Remove every instance that is left."""
        ...
