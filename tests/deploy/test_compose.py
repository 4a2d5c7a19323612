"""docker-compose.yml, run for real: up, enqueue, and the log is in W&B.

LocalStack's image cannot be pulled here, so that moto stands in its place, with the same address and account;
tests/localstack runs the worker against LocalStack itself."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aioboto3
import aiodocker
import pytest
import pytest_asyncio
import yaml

from tests.conftest import ENVIRON, in_ci
from tests.deploy.images import STATE, build_image, docker, ensure_bases, lay_out, wheelhouse
from tests.e2e.process import until
from worker.local.images import ensure_busybox_image

pytestmark = [
    pytest.mark.skipif(
        not in_ci() and not shutil.which("docker-compose"),
        reason="no docker-compose (Debian package of that name)",
    ),
    pytest.mark.docker,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
]


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compose() -> AsyncIterator[Compose]:
    """Up, with images of the checkout."""
    tag = f"launch-local/dev:{uuid.uuid4().hex[:8]}"
    async with aiodocker.Docker() as daemon:
        await ensure_bases(daemon)
        base = await ensure_busybox_image(daemon, STATE)
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE) as name:
        folder = Path(name)
        lay_out(folder, await wheelhouse("local"))
        # One image with the extra packages is the worker's as well: what it is without them test_image.py looks at.
        await build_image(folder, tag, target="dev", extras="local")
        moto = {"entrypoint": ["moto_server", "-H", "0.0.0.0", "-p", "4566"], "command": []}
        health = ["CMD", "python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 4566), 2)"]
        here = {
            "localstack": {**moto, "healthcheck": {"test": health}},
            # As of the worker's own stage.
            "worker": {
                "user": "10001:10001",
                "command": ["run"],
                "environment": {"LAUNCH_BASE_IMAGE": base},
                "healthcheck": {"test": ["CMD", "launch-worker-health"], "interval": "1s"},
            },
        }
        (folder / "here.yml").write_text(yaml.safe_dump({"services": here}))
        group = (await docker("run", "--rm", "-v", "/var/run/docker.sock:/s", "--entrypoint", "stat", tag, "-c", "%g", "/s")).strip()  # fmt: skip  # noqa: E501
        names = dict.fromkeys(("WORKER_IMAGE", "DEV_IMAGE", "LOCALSTACK_IMAGE"), tag)
        running = Compose(folder, f"launch{uuid.uuid4().hex[:8]}", {**names, "DOCKER_GROUP": group})
        try:
            await running("up", "--detach", "--no-build")
            yield running
        finally:
            print(await running("logs", "--no-color", check=False))  # noqa: T201  # pytest shows it with a failure
            await running("down", "--volumes", "--timeout", "30", check=False)
            await docker("rmi", "--no-prune", tag, check=False)


async def test_a_launch_from_code_runs_to_its_end(compose: Compose) -> None:
    await _upload("code.tar.gz", {"train.sh": "echo hello from the container\n"})
    message = {
        "runSpec": {
            "uri": "s3://launch-dev/code.tar.gz",
            "entity": "acme",
            "project": "compose",
            "overrides": {"entry_point": ["sh", "train.sh"]},
            "resource": "sagemaker",
            "resource_args": {
                "sagemaker": {
                    "RoleArn": "arn:aws:iam::123456789012:role/launch-training",
                    "ResourceConfig": {
                        "InstanceType": "ml.m5.large",
                        "InstanceCount": 1,
                        "VolumeSizeInGB": 1,
                    },
                    "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
                    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
                }
            },
        }
    }
    told = await compose(
        "exec", "-T", "worker", "launch-worker", "enqueue", "-", "--wait", stdin=json.dumps(message)
    )
    assert "completed: The training job completed." in told
    log = await compose("logs", "--no-color", "worker")
    events = [json.loads(line.partition("|")[2]) for line in log.splitlines() if '"event"' in line]
    finished = [event for event in events if event["event"] == "job_finished"]
    assert [event["lines"] for event in finished] == [1]


async def test_the_worker_is_healthy_and_drains(compose: Compose) -> None:
    name = (await compose("ps", "-q", "worker")).strip()

    async def healthy() -> bool:
        return (await docker("inspect", "--format", "{{.State.Health.Status}}", name)).strip() == "healthy"

    await until(healthy, "docker finds the worker healthy", 60)
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
