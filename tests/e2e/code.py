"""Launches that carry code: their sources, a registry of their own, and what may be left of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tarfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiodocker
from aiohttp import web
from moto.ecr.models import ecr_backends

from tests.e2e.audit import audit
from tests.e2e.bench import Bench
from tests.e2e.launches import LaunchCase, script
from tests.e2e.process import until
from worker.launch.record import LaunchRecord
from worker.ledger.opening import open_ledger
from worker.local.aws import ACCOUNT, REGION
from worker.local.ecr import LocalEcr
from worker.tracking.build_log import NAME as BUILD_LOG

SCRIPT = "train.sh"
_BUILT = "launch-worker/build:"

Files = Mapping[str, str | bytes]


@dataclass(frozen=True)
class Pushed:
    """An image of the local ECR."""

    digest: str
    tags: tuple[str, ...]


def archive(files: Files, *members: tarfile.TarInfo) -> bytes:
    """A tar.gz of files, with `members` as they are behind them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, text in files.items():
            content = text.encode() if isinstance(text, str) else text
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
        for member in members:
            packed.addfile(member)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class CodeBench:
    """A bench whose workers push to a repository of its own."""

    bench: Bench
    docker: aiodocker.Docker
    ecr: LocalEcr
    repository: str

    @property
    def work_dir(self) -> Path:
        return self.bench.folder / "work"

    def dockerfile(self, *steps: str, base: str = "") -> str:
        """A Dockerfile; also what a failed build leaves of it can be found again, and nothing comes from the cache of
        another test."""
        head = (f"FROM {base or self.bench.image}", f"LABEL {self._label}", "WORKDIR /code", "COPY . .")
        return "\n".join([*head, *steps, ""])

    def script(self, lines: Sequence[str], pause: float = 0.1) -> Files:
        """A source that prints `lines`."""
        return {SCRIPT: script(lines, pause) + "\n"}

    async def upload(self, content: bytes | Files, name: str = "") -> str:
        """Put a source into S3; returns its URI."""
        key = name or f"{self.repository}/{uuid.uuid4().hex}.tar.gz"
        body = content if isinstance(content, bytes) else archive(content)
        bucket = self.bench.services.bucket
        await self.bench.clients.s3.put_object(Bucket=bucket, Key=key, Body=body)
        return f"s3://{bucket}/{key}"

    def launch(
        self,
        uri: str,
        printed: Sequence[str] = (),
        *,
        command: Sequence[str] = ("sh", SCRIPT),
        dockerfile: str = "",
        **options: Any,
    ) -> LaunchCase:
        """A launch of the source at `uri`, which prints these lines."""
        overrides: dict[str, Any] = {"entry_point": list(command)} if command else {}
        if dockerfile:
            overrides["dockerfile"] = dockerfile
        return self.bench.launch(printed, docker={}, uri=uri, overrides=overrides, **options)

    def pushed(self) -> list[Pushed]:
        """The images of the repository."""
        repository = ecr_backends[ACCOUNT][REGION].repositories.get(self.repository)
        images = repository.images if repository else ()
        return [Pushed(image.image_digest, tuple(image.image_tags)) for image in images]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log events called `name` of all workers."""
        return [event for worker in self.bench.workers for event in worker.events(name)]

    def build_log(self, case: LaunchCase) -> list[str]:
        """The build's output in W&B."""
        run = self.bench.companion(case)
        assert run is not None
        return run.files[BUILD_LOG].decode().splitlines()

    async def audit(self, *cases: LaunchCase, images: int = 1) -> list[LaunchRecord]:
        """Hold each launch to the whole promise, with its image pinned, and look at what is left."""
        records = await audit(self.bench, *cases)
        pushed = self.pushed()
        assert len(pushed) == images, pushed
        known = {f"{self.registry}@{image.digest}" for image in pushed}
        assert {record.image for record in records} == known
        for record in records:
            assert (
                record.request is None or record.request["AlgorithmSpecification"]["TrainingImage"] in known
            )
        await self.nothing_left()
        return records

    @property
    def registry(self) -> str:
        """The repository's URI, as the workers have it."""
        return self.bench.environment["LAUNCH_REGISTRY"]

    @property
    def builds(self) -> int:
        """How many builds began, but for those in vain: another test process may remove a layer of docker's cache."""
        vain = [event for event in self.events("launch_again") if "was removed meanwhile" in event["error"]]
        return len(self.events("build_started")) - len(vain)

    async def nothing_left(self) -> None:
        """No folder, no container, no lock, and no image but those that later builds may use again."""

        async def folders() -> bool:
            return not any(self.work_dir.iterdir())

        async def containers() -> bool:
            return not await self.docker.containers.list(all=True, filters=self._filter())

        await until(folders, "the sources' folders are removed", 10)
        await until(containers, "the builds' containers are removed", 10)
        for image in await self.docker.images.list(filters={"label": [self._label]}):
            assert all(name.startswith((_BUILT, "<none>")) for name in image["RepoTags"] or ()), image
        await self._no_lock_held()

    async def _no_lock_held(self) -> None:
        """What a killed worker held may stand there still: whoever wants it sees that nobody holds it."""
        started = [(worker.killed, worker.events("worker_started")) for worker in self.bench.workers]
        free = {"auditor", *(event["worker"] for killed, events in started if killed for event in events)}
        async with open_ledger(self.bench.ledger, self.bench.clients.dynamodb) as ledger:
            for tag in {event["tag"] for event in self.events("build_started")}:
                assert await ledger.lock(tag, "auditor") in free, "a lock is left"
                await ledger.unlock(tag, "auditor")

    async def remove_images(self) -> None:
        """A build that was just given up holds its image for a moment yet."""

        async def gone() -> bool:
            images = await self.docker.images.list(filters={"label": [self._label]})
            for image in images:
                for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ()), image["Id"]):
                    with contextlib.suppress(aiodocker.DockerError):
                        # Its parents may be another test process's cache just now.
                        await self.docker.images.delete(name, force=True, noprune=True)
            return not images

        await until(gone, "the images of this test are removed", 60)

    @property
    def _label(self) -> str:
        return f"launch-worker.deployment={self.bench.deployment}"

    def _filter(self) -> str:
        return json.dumps({"label": [self._label]})


@contextlib.asynccontextmanager
async def code_bench(bench: Bench, *, address: str = "", **environment: str) -> AsyncIterator[CodeBench]:
    """Let the workers of `bench` build. `address`: of a proxy before the registry; `environment`: more of it for the
    workers. At the end no image of it is left on the daemon."""
    services = bench.services
    assert services.docker is not None
    assert services.ecr is not None
    repository = f"code-{bench.deployment}"
    work_dir = bench.folder / "work"
    work_dir.mkdir(exist_ok=True)
    if bench.roles:
        bench.roles.values["REPOSITORY"] = repository
        bench.roles.worker = ("worker-builds.json", "optional/create-repository.json")
    if address:
        services.executor.registries.add(address)  # type: ignore[attr-defined]  # e2e has docker's
    bench.environment |= {
        "LAUNCH_REGISTRY": f"{address or services.ecr.address}/{repository}",
        "LAUNCH_CREATE_REPOSITORY": "true",
        "LAUNCH_BASE_IMAGE": bench.image,
        "LAUNCH_BUILD_NETWORK": "none",
        "LAUNCH_BUILD_LOW_WATER": "0",
        "LAUNCH_MAX_BUILDS": "4",
        "LAUNCH_WORK_DIR": str(work_dir),
        **environment,
    }
    code = CodeBench(bench=bench, docker=services.docker, ecr=services.ecr, repository=repository)
    try:
        yield code
    finally:
        await bench.end_workers()
        await code.remove_images()


class Gate:
    """An address that a build step asks, and that answers when it is opened."""

    def __init__(self) -> None:
        self.wanted = 1
        self.entered = asyncio.Event()
        """Set when `wanted` stand before it."""
        self.opened = asyncio.Event()
        self.address = ""
        self._waiting = 0

    @property
    def step(self) -> str:
        """The Dockerfile's line; needs the host's network. Made anew for each gate, so not from a cache."""
        return f"RUN wget -q -O - http://{self.address}/"

    async def _handle(self, request: web.Request) -> web.Response:
        self._waiting += 1
        if self._waiting >= self.wanted:
            self.entered.set()
        await self.opened.wait()
        return web.Response(text="come in\n")


@contextlib.asynccontextmanager
async def running_gate() -> AsyncIterator[Gate]:
    """A closed gate on a free port of 127.0.0.1."""
    gate = Gate()
    app = web.Application()
    app.router.add_get("/", gate._handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        gate.address = "{}:{}".format(*runner.addresses[0][:2])
        yield gate
    finally:
        gate.opened.set()
        await runner.cleanup()


async def reached(event: asyncio.Event, what: str, seconds: float = 30.0) -> None:
    """Wait for `event`; a test that hangs says for what."""

    async def is_set() -> bool:
        return event.is_set()

    await until(is_set, what, seconds)
