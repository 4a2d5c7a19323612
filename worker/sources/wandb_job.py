"""A W&B job: what its file says, and its files, and those of a code artifact, written to a folder within limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import aiohttp

from worker.clients.api_key import ApiKey
from worker.errors import Never, Throttled, Unreachable
from worker.launch.job_spec import BAD_CODE, JOB_FILE, ArtifactRef, JobSpec, parse_job_spec
from worker.sources.checkout import Budget, SourceLimits
from worker.sources.stoppable import StopCheck, run_stoppable, run_to_end
from worker.sources.tree import CHUNK, TreeWriter, storage_error
from worker.sources.wandb_sdk import NOT_FOUND_CODE, ArtifactFile, FoundArtifact, WandbSdk, wandb_sdk

TOO_LARGE_CODE = "LW-JOB-TOO-LARGE"
UNSAFE_CODE = "LW-JOB-UNSAFE"

_MAX_JOB_FILE = 1 << 20
_AT_ONCE = 8
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
"""Of a file of code: all of them together have LAUNCH_FETCH_TIMEOUT."""
_JOB_FILE_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job: one version of its artifact, and what its file says."""

    artifact: FoundArtifact
    spec: JobSpec


class WandbJobs:
    """Jobs and their code in one W&B."""

    def __init__(self, sdk: WandbSdk, session: aiohttp.ClientSession) -> None:
        self._sdk = sdk
        self._session = session

    async def job(self, ref: ArtifactRef) -> FoundJob:
        """The job that `ref` means now; of its files only `wandb-job.json` is fetched.

        Raises as `artifact` and `parse_job_spec` do."""
        artifact = await self._sdk.find(ref, "job")
        file = next((file for file in artifact.files if file.path == JOB_FILE), None)
        if file is None or file.size > _MAX_JOB_FILE:
            raise Never(
                f"job {ref} has no {JOB_FILE} of a usable size; create it with `wandb job create`",
                code=BAD_CODE,
            )
        content = bytearray()
        budget = Budget(SourceLimits(source_max_bytes=_MAX_JOB_FILE), code=BAD_CODE)
        async with self._chunks(file, _JOB_FILE_TIMEOUT) as chunks:
            async for chunk in chunks:
                budget.take_bytes(len(chunk))
                content += chunk
        return FoundJob(artifact, parse_job_spec(content.decode("utf-8", "replace")))

    async def artifact(self, ref: ArtifactRef, kind: Literal["job", "code"]) -> FoundArtifact:
        """The version that `ref` means now; raises as `WandbSdk.find` does."""
        return await self._sdk.find(ref, kind)

    async def write(
        self,
        artifact: FoundArtifact,
        tree: Path,
        *,
        scratch: Path,
        budget: Budget,
        only: Collection[str] | None = None,
    ) -> None:
        """Write the artifact's files below `tree`, over what is there; `only`: those of these names. `scratch` is an
        empty folder.

        Raises `Never` (LW-JOB-UNSAFE, LW-JOB-NOT-FOUND, the budget's code), `Unreachable`, `Throttled`, or `Again` when
        the disk is full."""
        wanted = [file for file in artifact.files if only is None or file.path in only]
        budget.require(sum(file.size for file in wanted))
        turns, loaded = asyncio.Semaphore(_AT_ONCE), 0

        def count(size: int) -> None:
            nonlocal loaded
            loaded += size
            budget.require(loaded)

        async def load(file: ArtifactFile, target: Path) -> None:
            async with turns:
                await self._load(file, target, count)

        parts = [(file, scratch / str(number)) for number, file in enumerate(wanted)]
        try:
            async with asyncio.TaskGroup() as group:
                for file, part in parts:
                    group.create_task(load(file, part), name="load artifact file")
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

        def place(check_stop: StopCheck) -> None:
            _place(parts, TreeWriter(tree, budget, code=UNSAFE_CODE, check_stop=check_stop))

        await run_stoppable(place)

    async def _load(self, file: ArtifactFile, target: Path, count: Callable[[int], None]) -> None:
        """Sizes that W&B names may be wrong: what is read counts."""
        try:
            with target.open("xb") as out:
                async with self._chunks(file, _TIMEOUT) as chunks:
                    async for chunk in chunks:
                        count(len(chunk))
                        await run_to_end(partial(out.write, chunk))
        except OSError as error:
            raise storage_error(error) from error

    @contextlib.asynccontextmanager
    async def _chunks(
        self, file: ArtifactFile, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The file's content. Its address is signed and gets no login; it stands in no error."""
        what = f"{file.path[:200]!r} of the artifact"
        try:
            async with self._session.get(file.url, timeout=timeout) as response:
                _check(what, response)
                yield response.content.iter_chunked(CHUNK)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"{what} was not fetched: {type(error).__name__}") from None


def _check(what: str, response: aiohttp.ClientResponse) -> None:
    if response.status < 300:
        return
    if response.status == 429:
        raise Throttled(f"{what} was not fetched: W&B answered 429")
    if response.status in (404, 410):
        raise Never(f"{what} is gone from W&B's storage; create the artifact again", code=NOT_FOUND_CODE)
    # 403 among them: a signature that is too old. The next try gets a new one.
    raise Unreachable(f"{what} was not fetched: W&B answered {response.status}")


def _place(parts: list[tuple[ArtifactFile, Path]], writer: TreeWriter) -> None:
    try:
        for file, part in parts:
            with part.open("rb") as content:
                writer.file(file.path, content, size=part.stat().st_size, executable=False)
            part.unlink()
        writer.finish()
    except OSError as error:
        raise storage_error(error) from error


@contextlib.asynccontextmanager
async def wandb_jobs(base_url: str, api_key: ApiKey, *, timeout: float = 15.0) -> AsyncIterator[WandbJobs]:
    """Jobs of one server, seen with this key. `timeout`: seconds of one question to W&B."""
    with wandb_sdk(base_url, api_key, timeout=timeout) as sdk:
        async with aiohttp.ClientSession(headers={"User-Agent": "launch-worker"}) as session:
            yield WandbJobs(sdk, session)
