"""The story of a source: its URI, a folder, git, S3 or W&B, and a checkout that is gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import Unreachable
from worker.launch.message import CodeSource
from worker.ops.logging import get_logger
from worker.sources.archive import TOO_LARGE_CODE, archive_kind, unpack
from worker.sources.checkout import Budget, Checkout, SourceLimits
from worker.sources.git import GitClient
from worker.sources.job_code import JobCodeFetcher
from worker.sources.location import S3Object, parse_location
from worker.sources.s3 import download
from worker.sources.scratch import scratch_folder
from worker.sources.stoppable import run_to_end

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

SCRATCH = "scratch"
"""What is needed while fetching only: repository, archive, logins."""

_log = get_logger()


class Sources:
    """Fetches sources, many at once; each has a folder of its own."""

    def __init__(
        self,
        *,
        s3: S3Client,
        git: GitClient,
        work_dir: Path,
        limits: SourceLimits,
        jobs: JobCodeFetcher | None = None,
    ) -> None:
        """`work_dir` exists and has room for `limits.source_max_bytes` a launch in work. `jobs`: None without W&B."""
        self._jobs = jobs
        self._s3 = s3
        self._git = git
        self._work_dir = work_dir
        self._limits = limits
        # Unpacking keeps a core busy, and a thread of the pool that also looks up host names.
        self._unpacking = asyncio.Semaphore(os.cpu_count() or 1)

    @contextlib.asynccontextmanager
    async def checkout(self, source: CodeSource) -> AsyncIterator[Checkout]:
        """Fetch `source` and lend its files for the length of the context; they are deleted at the end in any case.

        Raises `Never` with what to do (`LW-SOURCE-SCHEME`, `LW-SOURCE-URI`, `LW-GIT-…`, `LW-S3-…`, `LW-ARCHIVE-…`,
        `LW-JOB-…`), or `Again` and its kin when the peer, the network or the disk may be better later."""
        name = source.job.name if source.job else parse_location(source.uri).origin
        async with scratch_folder(self._work_dir) as folder:
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._limits.fetch_timeout):
                    checkout = await self._fetch(source, folder)
                await run_to_end(partial(shutil.rmtree, folder / SCRATCH))
            except TimeoutError as error:
                limit = f"{self._limits.fetch_timeout:g} s (LAUNCH_FETCH_TIMEOUT)"
                raise Unreachable(f"{name} was not fetched within {limit}") from error
            seconds = round(time.monotonic() - started, 1)
            _log.info(
                "source_fetched", origin=checkout.origin, content_id=checkout.content_id, seconds=seconds
            )
            yield checkout

    async def _fetch(self, source: CodeSource, folder: Path) -> Checkout:
        scratch, tree = folder / SCRATCH, folder / "tree"
        for path in (scratch, tree):
            path.mkdir(mode=0o755)
        if source.job is not None:
            assert self._jobs is not None, "a job was found, so there is a W&B"
            return await self._jobs.fetch(source, source.job, scratch=scratch, tree=tree)
        location = parse_location(source.uri)
        if isinstance(location, S3Object):
            return await self._fetch_archive(location, scratch / "archive", tree)
        commit = await self._git.fetch(
            location, source.version, scratch=scratch, tree=tree, limits=self._limits
        )
        return Checkout(tree, f"git:{commit}", location.origin, commit)

    async def _fetch_archive(self, location: S3Object, archive: Path, tree: Path) -> Checkout:
        kind = archive_kind(location.key)
        digest = await download(self._s3, location, archive, Budget(self._limits, code=TOO_LARGE_CODE))
        async with self._unpacking:
            await unpack(archive, kind, tree, self._limits)
        return Checkout(tree, f"sha256:{digest}", location.origin)
