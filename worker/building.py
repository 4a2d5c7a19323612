"""Code becomes an image: fetched, asked for in ECR, and only if it is not there built once and pushed.

source ─▶ checkout ─▶ recipe ─▶ tag (content address) ─▶ in ECR? ─▶ lock ─▶ context ─▶ build ─▶ push ─▶ digest
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.aio import effect
from worker.errors import BadMessage, Never, Problem, WorkerError
from worker.images.builder import ImageBuilder
from worker.images.context import DOCKERFILE, SourceFolder, write_context
from worker.images.dockerfile import Recipe, plan_recipe
from worker.images.reference import image_tag
from worker.images.registry import EcrRegistry
from worker.launch.message import CodeSource, Launch
from worker.launch.record import LaunchRecord
from worker.ledger.build_lock import BuildLocks
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.sources.checkout import Checkout
from worker.sources.fetch import Sources
from worker.sources.scratch import scratch_folder
from worker.tracking.build_log import BuildLog
from worker.tracking.port import Companion

_log = get_logger()


@dataclass(frozen=True, slots=True)
class LaunchImage:
    """The image of a launch that carries code."""

    uri: str
    """Repository and digest."""
    entry_point: tuple[str, ...]
    """The command, as given or as the image needs it."""
    built: bool
    """False: it was in the registry already."""
    warnings: tuple[str, ...] = ()


class Building:
    """Makes images of code launches; identical ones at one time are made once."""

    def __init__(
        self,
        *,
        sources: Sources,
        builder: ImageBuilder,
        registry: EcrRegistry,
        locks: BuildLocks,
        companion: Companion,
        metrics: Metrics,
        base_image: str,
        platform: str,
        deployment: str,
        work_dir: Path,
        cache_mounts: bool,
    ) -> None:
        self._sources = sources
        self._builder = builder
        self._registry = registry
        self._locks = locks
        self._companion = companion
        self._metrics = metrics
        self._base_image = base_image
        self._platform = platform
        self._deployment = deployment
        self._work_dir = work_dir
        self._cache_mounts = cache_mounts

    @property
    def repository(self) -> str:
        """Where images go: for checks before anything is fetched."""
        return self._registry.repository_uri

    async def image_of(self, record: LaunchRecord, launch: Launch, source: CodeSource) -> LaunchImage:
        """The image of `source` for this launch. Raises `Never` (stage `build`) and `Again`."""
        async with contextlib.AsyncExitStack() as stack:
            with effect("fetch_source"):
                fetched = await stack.enter_async_context(self._sources.checkout(source))
            recipe = await asyncio.to_thread(self._plan, fetched, launch, source)
            await self._registry.ensure_repository()
            bases = await self._builder.base_digests(recipe.bases, self._registry.auth_for)
            tag = self._tag(fetched, recipe, bases)
            digest = await self._registry.find(tag)
            built = False
            if digest is None:
                async with self._locks.only_one(tag):
                    # Whoever held the lock before may have made it.
                    digest = await self._registry.find(tag)
                    if digest is None:
                        digest, built = await self._make(record, fetched, recipe, tag), True
        self._metrics.images.labels("built" if built else "found").inc()
        _log.info("image_ready", tag=tag, digest=digest, built=built)
        return LaunchImage(
            f"{self._registry.repository_uri}@{digest}", recipe.entry_point, built, recipe.warnings
        )

    def _plan(self, checkout: Checkout, launch: Launch, source: CodeSource) -> Recipe:
        return plan_recipe(
            SourceFolder(checkout.path),
            dockerfile_override=source.dockerfile,
            entry_point=launch.entry_point,
            base_image=self._base_image,
            python_version="",
            cache_mounts=self._cache_mounts,
        )

    def _tag(self, checkout: Checkout, recipe: Recipe, bases: Mapping[str, str]) -> str:
        return image_tag(
            origin=checkout.origin,
            content_id=checkout.content_id,
            # What the Dockerfile is applied to belongs to it: the folder, and the files that are added to it.
            dockerfile="\0".join(
                (recipe.dockerfile, recipe.context, *(f"{p}\0{t}" for p, t in recipe.added))
            ),
            bases=bases,
            platform=self._platform,
        )

    async def _make(self, record: LaunchRecord, checkout: Checkout, recipe: Recipe, tag: str) -> str:
        log = BuildLog(self._companion, record)
        local_tag = f"launch-worker/build:{tag}"
        try:
            async with scratch_folder(self._work_dir) as folder:
                context = folder / "context.tar"
                facts = await write_context(checkout.path, recipe, context)
                _log.info("build_started", tag=tag, context_bytes=facts.bytes, files=facts.files)
                with effect("build_image"):
                    await self._build(context, local_tag, log.add)
            with effect("push_image"):
                digest = await self._registry.push(local_tag, tag, log.add)
        except WorkerError as error:
            await log.close(failure=str(error) if isinstance(error, Never) else "")
            raise
        await log.close()
        return digest

    async def _build(self, context: Path, local_tag: str, on_line: Callable[[str], None]) -> None:
        await self._builder.build(
            context,
            tag=local_tag,
            labels={"launch-worker.deployment": self._deployment},
            registry_auths={},
            on_line=on_line,
            dockerfile=DOCKERFILE,
        )


def no_builder() -> BadMessage:
    """The refusal of a code launch by a worker that builds nothing."""
    what = "is code, and this worker builds no images"
    remedy = "set LAUNCH_REGISTRY (and LAUNCH_BUILDER other than none), or name a ready image"
    return BadMessage((Problem("$.runSpec.uri", what, remedy),), code="LW-NO-BUILDER")
