"""docker-compose.yml, run for real: build, up, enqueue, and the log is in W&B; and the same through the mirror.

Its own `build` sections are used, on base images that are made here, as LocalStack's is from its PyPI packages
(tests/deploy/images.py); the file is as users have it."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sys
import tarfile
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aioboto3
import aiodocker
import pytest
import pytest_asyncio
import yaml

from tests.conftest import ENVIRON, in_ci
from tests.deploy.images import (
    ARGUMENTS,
    DEV_BASE,
    LOCALSTACK_VENV,
    STATE,
    docker,
    ensure_bases,
    ensure_localstack,
    lay_out,
    one_at_a_time,
    run,
    wheelhouse,
)
from tests.e2e.process import until
from worker.local.images import ensure_busybox_image

pytestmark = [
    pytest.mark.skipif(
        not in_ci() and not (shutil.which("docker-compose") and LOCALSTACK_VENV.exists()),
        reason="no docker-compose (Debian package of that name), or no LocalStack (`make test-localstack`)",
    ),
    pytest.mark.docker,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]


RESOURCE_ARGS = {
    "sagemaker": {
        "RoleArn": "arn:aws:iam::123456789012:role/launch-training",
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }
}


@dataclass(frozen=True)
class Compose:
    """docker-compose on a copy of the checkout."""

    folder: Path
    project: str
    environment: dict[str, str]

    async def __call__(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        process = await asyncio.create_subprocess_exec(
            *("docker-compose", "-p", self.project, "-f", "docker-compose.yml", "-f", "here.yml", *arguments),
            cwd=self.folder,
            env={**ENVIRON, **self.environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(stdin.encode())
        text = output.decode(errors="replace")
        assert process.returncode == 0 or not check, f"docker-compose {arguments[0]}: {text}"
        return text

    async def events(self, service: str, name: str) -> list[dict[str, Any]]:
        """Log events of a service so far."""
        # docker itself is asked, often: docker-compose takes a second to start.
        log = await docker("logs", await self.container(service))
        events = [json.loads(line) for line in log.splitlines() if '"event"' in line]
        return [event for event in events if event["event"] == name]

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """`until`, with the log of all services when it does not come."""
        try:
            await until(condition, what)
        except AssertionError:
            print(await self.logs())  # noqa: T201  # shown with the failure
            raise

    async def logs(self) -> str:
        """What all services have printed."""
        return await self("--profile", "mirror", "logs", "--no-color", check=False)

    async def container(self, service: str) -> str:
        """Id of a service's container."""
        labels = {"project": self.project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return (await docker("ps", "--all", "--quiet", *filters)).strip()


def _group_of_the_socket() -> str:
    return str(Path("/var/run/docker.sock").stat().st_gid)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compose() -> AsyncIterator[Compose]:
    """Up, with images of the checkout."""
    tag = uuid.uuid4().hex[:8]
    images = {"WORKER_IMAGE": f"launch-local/worker:{tag}", "DEV_IMAGE": f"launch-local/dev:{tag}"}
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE) as name:
        folder = Path(name)
        async with one_at_a_time(), aiodocker.Docker() as daemon, asyncio.TaskGroup() as tasks:
            localstack = tasks.create_task(ensure_localstack(daemon), name="image of LocalStack")
            await ensure_bases(daemon)
            base = await ensure_busybox_image(daemon, STATE)
            environment = {
                **images,
                "DOCKER_GROUP": _group_of_the_socket(),
                # docker's builder is the classic one, see tests/deploy/images.py.
                "DOCKER_BUILDKIT": "0",
            }
            lay_out(folder, await wheelhouse("local"))
            (folder / "here.yml").write_text(yaml.safe_dump({"services": _here(base)}))
            running = Compose(folder, f"launch{tag}", environment)
            await running("build", "worker-image", "dev")
        environment["LOCALSTACK_IMAGE"] = localstack.result()
        try:
            await running("up", "--detach", "--no-build")
            yield running
        finally:
            print(await running.logs())  # noqa: T201  # shown with a failure
            await running("--profile", "mirror", "down", "--volumes", "--timeout", "30", check=False)
            await docker("rmi", "--no-prune", *images.values(), check=False)


def _here(base: str) -> dict[str, Any]:
    """What is different where nothing can be pulled, and no index answers: the arguments of builds, and `base` for
    the images of launches."""
    # Users wait longer for late lines; and a worker that ends waits for its long poll of SQS.
    environment = {"LAUNCH_BASE_IMAGE": base, "LAUNCH_LOG_QUIET": "1", "LAUNCH_RECEIVE_WAIT": "2"}
    of_worker = {"environment": environment, "healthcheck": {"interval": "1s"}}
    return {
        "worker-image": {"build": {"args": ARGUMENTS}},
        "dev": {"build": {"args": {**ARGUMENTS, "BASE_IMAGE": DEV_BASE}}},
        "worker": of_worker,
        "mirror": of_worker,
    }


async def test_a_launch_from_code_runs_to_its_end(compose: Compose) -> None:
    await _upload("code.tar.gz", {"train.sh": "echo hello from the container\n"})
    message = {
        "runSpec": {
            "uri": "s3://launch-dev/code.tar.gz",
            "entity": "acme",
            "project": "compose",
            "overrides": {"entry_point": ["sh", "train.sh"]},
            "resource": "sagemaker",
            "resource_args": RESOURCE_ARGS,
        }
    }
    told = await compose(
        "exec", "-T", "worker", "launch-worker", "enqueue", "-", "--wait", stdin=json.dumps(message)
    )
    assert "completed: The training job completed." in told
    assert [event["lines"] for event in await compose.events("worker", "job_finished")] == [1]


async def test_what_wandb_launch_sends_runs_through_the_mirror(compose: Compose, tmp_path: Path) -> None:
    """With the image that was built before: a ready one."""
    (built,) = await compose.events("worker", "image_ready")
    await compose("--profile", "mirror", "up", "--detach", "--no-build", "mirror")
    config = {"overrides": {"entry_point": ["sh", "train.sh"]}, "resource_args": RESOURCE_ARGS}
    (tmp_path / "launch.json").write_text(json.dumps(config))
    await run(
        *("env", "-i", "PATH=/usr/bin:/bin", f"HOME={tmp_path}", "WANDB_BASE_URL=http://127.0.0.1:8566"),
        *("WANDB_API_KEY=local00000000000000000000000000000000000", "WANDB_ERROR_REPORTING=false"),
        *(sys.executable, "-m", "wandb", "launch", "-q", "launches", "-e", "acme", "-p", "compose"),
        *("-d", f"127.0.0.1:5566/launch-dev:{built['tag']}", "-c", "launch.json"),
        cwd=tmp_path,
    )

    async def completed() -> bool:
        # A job that takes longer is seen in other states before.
        states = [event["status"] for event in await compose.events("worker", "job_state")]
        return states.count("Completed") == 2

    await compose.until(completed, "the launch from W&B's queue has run")
    assert len(await compose.events("mirror", "launch_mirrored")) == 1


async def test_the_worker_is_healthy_and_drains(compose: Compose) -> None:
    name = await compose.container("worker")

    async def healthy() -> bool:
        return (await docker("inspect", "--format", "{{.State.Health.Status}}", name)).strip() == "healthy"

    await compose.until(healthy, "docker finds the worker healthy")
    await compose("stop", "worker")
    assert (await docker("inspect", "--format", "{{.State.ExitCode}}", name)).strip() == "0"


async def _upload(key: str, files: dict[str, str]) -> None:
    """As a user would, with LocalStack's address."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    session = aioboto3.Session("123456789012", "local", region_name="us-east-1")
    async with session.client("s3", endpoint_url="http://127.0.0.1:4570") as s3:
        await s3.put_object(Bucket="launch-dev", Key=key, Body=buffer.getvalue())
