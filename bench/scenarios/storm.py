"""Many launches of code at once, with a real docker daemon and a real registry: each image is built once.

SageMaker, SQS, Logs and W&B are the simulator's; S3, ECR and the registry the local stack's, in the bench's process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiodocker

from bench.launches import names, run_spec
from bench.measurement import WORKER, Measurement
from bench.scenarios.windows import Window, measurement_of
from bench.stage import Stage, until
from worker.local.aws import LocalAws, running_aws
from worker.local.ecr import LocalEcr, running_ecr
from worker.local.executor_docker import DockerNotRunning, docker_engine
from worker.local.images import ensure_busybox_image

_EACH = 3
"""Launches of each source."""
_BUCKET = "bench"
_REPOSITORY = "bench"
_DEPLOYMENT = "bench-storm"
_STATE = Path(__file__).parents[2] / ".state"
"""Debian packages for the base image, kept between runs."""


@dataclass(frozen=True, slots=True)
class _Services:
    aws: LocalAws
    ecr: LocalEcr
    docker: aiodocker.Docker
    base: str


async def storm(stage: Stage, *, count: int) -> list[Measurement]:
    """`count` sources, each launched three times. Nothing where no docker daemon answers."""
    await stage.fresh(CreateTrainingJob=None)
    try:
        async with _services() as services:
            return [await _storm(stage, services, count)]
    except DockerNotRunning:
        return []


async def _storm(stage: Stage, services: _Services, count: int) -> Measurement:
    uris = [await _upload(services, number) for number in range(count)]
    launches = names("storm", count * _EACH)
    bodies = [_message(name, uris[number % count]) for number, name in enumerate(launches)]
    settings = {
        **{f"AWS_ENDPOINT_URL_{service}": services.aws.endpoint for service in ("S3", "ECR")},
        "LAUNCH_BUILDER": "docker",
        "LAUNCH_REGISTRY": f"{services.ecr.address}/{_REPOSITORY}",
        "LAUNCH_BASE_IMAGE": services.base,
        "LAUNCH_DEPLOYMENT": _DEPLOYMENT,
        "LAUNCH_SLOTS": "40",
        "LAUNCH_BUILD_LOW_WATER": "0",
        "LAUNCH_RATE_CREATE_TRAINING_JOB": "100",
    }
    async with stage.worker(stage.folder / "storm.db", settings) as worker:
        window = await Window.begin(stage, worker)
        sent_at = float((await stage.control("time"))["now"])
        await stage.control("messages", bodies=bodies)

        async def settled() -> bool:
            report = await stage.report()
            return len(report["created_at"]) + int(report["dead"]) >= len(bodies)

        await until(settled, f"{len(bodies)} launches settled", seconds=60 + 5.0 * count, every=0.25)
        report, usage = await window.end()
        built = sum(1 for line in _log(worker.program.output) if line.get("event") == "build_started")
    created = [at - sent_at for at in report["created_at"]]
    seconds = max(created, default=0.0)
    return measurement_of(
        f"{len(bodies)} launches of {count} sources, built with docker",
        WORKER,
        report,
        usage,
        result=f"{built} builds in {seconds:.1f} s, {count / seconds:.1f} images/s, {report['dead']} failed",
        numbers={"builds": built, "failed": report["dead"]},
        notes=("the daemon's own work is not in the worker's CPU",),
        samples={"created": tuple(created)},
    )


@contextlib.asynccontextmanager
async def _services() -> AsyncIterator[_Services]:
    async with docker_engine() as docker, running_aws() as aws, running_ecr() as ecr:
        local = await ensure_busybox_image(docker, _STATE)
        session = aws.session()
        async with (
            session.client("ecr", endpoint_url=aws.endpoint) as client,
            session.client("s3", endpoint_url=aws.endpoint) as s3,
        ):
            await client.create_repository(repositoryName=_REPOSITORY)
            await s3.create_bucket(Bucket=_BUCKET)
        base = await ecr.seed_image(docker, local, _REPOSITORY, "base")
        try:
            yield _Services(aws, ecr, docker, base)
        finally:
            await _remove_images(docker)


async def _remove_images(docker: aiodocker.Docker) -> None:
    label = json.dumps({"label": [f"launch-worker.deployment={_DEPLOYMENT}"]})
    for image in await docker.images.list(filters=label):
        with contextlib.suppress(aiodocker.DockerError):
            await docker.images.delete(image["Id"], force=True)


async def _upload(services: _Services, number: int) -> str:
    key = f"source-{number}.tar.gz"
    files = {
        "train.sh": f"echo source {number}\n",
        "Dockerfile.wandb": f"FROM {services.base}\nWORKDIR /code\nCOPY . .\n",
    }
    async with services.aws.session().client("s3", endpoint_url=services.aws.endpoint) as s3:
        await s3.put_object(Bucket=_BUCKET, Key=key, Body=await asyncio.to_thread(_archive, files))
    return f"s3://{_BUCKET}/{key}"


def _archive(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _message(name: str, uri: str) -> str:
    spec = run_spec(name)
    del spec["docker"], spec["resource_args"]["sagemaker"]["AlgorithmSpecification"]
    overrides = {**spec["overrides"], "entry_point": ["sh", "train.sh"]}
    return json.dumps({"launchId": name, "runSpec": {**spec, "uri": uri, "overrides": overrides}})


def _log(path: Path) -> Sequence[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
