"""Code becomes an image: fetched, asked for in ECR, and only if it is not there built once and pushed.

source ─▶ checkout ─▶ recipe ─▶ tag (content address) ─▶ in ECR? ─▶ lock ─▶ context ─▶ build ─▶ push ─▶ digest
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from worker.aio import effect
from worker.errors import BadMessage, Never, Problem, Stage
from worker.images.build_output import BuildOutput
from worker.images.builder import ImageBuilder
from worker.images.context import DOCKERFILE, SourceFolder, installer, write_context
from worker.images.dockerfile import Recipe, plan_recipe
from worker.images.reference import image_tag, parse_ecr_host, parse_reference
from worker.images.registry import EcrRegistry
from worker.launch.message import CodeSource, Launch
from worker.ledger.build_lock import BuildLocks
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.sources.checkout import Checkout
from worker.sources.fetch import Sources
from worker.sources.scratch import scratch_folder
from worker.tracking.build_log import BuildLogs

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
    failed_packages: tuple[str, ...] = ()
    """What it had to be built without; `warnings` speak of them."""


class Building:
    """Makes images of code launches; identical ones at one time are made once."""

    def __init__(
        self,
        *,
        sources: Sources,
        builder: ImageBuilder,
        registry: EcrRegistry,
        locks: BuildLocks,
        logs: BuildLogs,
        metrics: Metrics,
        base_image: str,
        platform: str,
        deployment: str,
        work_dir: Path,
        cache_mounts: bool,
        allowed_images: Sequence[str],
    ) -> None:
        self._sources = sources
        self._builder = builder
        self._registry = registry
        self._locks = locks
        self._logs = logs
        self._metrics = metrics
        self._base_image = base_image
        self._platform = platform
        self._deployment = deployment
        self._work_dir = work_dir
        self._cache_mounts = cache_mounts
        self._allowed_images = allowed_images

    @property
    def repository(self) -> str:
        """Where images go: for checks before anything is fetched."""
        return self._registry.repository_uri

    async def image_of(
        self, launch: Launch, source: CodeSource, on_fetched: Callable[[Checkout], Awaitable[None]]
    ) -> LaunchImage:
        """The image of `source` for this launch; `on_fetched` is told what was fetched before anything is made of it.

        Raises `Never` (stage `build`) and `Again`. The build's output waits in `BuildLogs`."""
        async with contextlib.AsyncExitStack() as stack:
            with effect("fetch_source"):
                fetched = await stack.enter_async_context(self._sources.checkout(source))
            await on_fetched(fetched)
            recipe = await asyncio.to_thread(self._plan, fetched, launch, source)
            self._check_bases(recipe)
            await self._registry.ensure_repository()
            bases = await self._builder.base_digests(recipe.bases, self._registry.auth_for)
            tag = self._tag(fetched, recipe, bases)
            digest = await self._registry.find(tag)
            built = False
            failed: tuple[str, ...] = ()
            warnings = (*fetched.warnings, *recipe.warnings)
            if digest is None:
                async with self._locks.only_one(tag):
                    # Whoever held the lock before may have made it.
                    digest = await self._registry.find(tag)
                    if digest is None:
                        made = await self._make(launch, fetched, recipe, bases, tag)
                        digest, built, failed = made.digest, True, made.failed_packages
                        warnings = (*warnings, *made.warnings)
        self._metrics.images.labels("built" if built else "found").inc()
        _log.info("image_ready", tag=tag, digest=digest, built=built)
        return LaunchImage(
            f"{self._registry.repository_uri}@{digest}",
            recipe.entry_point,
            built,
            warnings,
            failed,
        )

    def _check_bases(self, recipe: Recipe) -> None:
        """Private base images are pulled with the worker's own login, so the allow-list holds for them too. Public ones
        are anybody's, and LAUNCH_BASE_IMAGE is the operator's choice."""
        private = [base for base in recipe.bases if _is_private(base) and base != self._base_image]
        refused = [base for base in private if not _allowed(base, self._allowed_images)]
        if refused:
            raise Never(
                f"the Dockerfile builds on {', '.join(refused)}, which LAUNCH_ALLOWED_IMAGES does not allow;"
                " take a base image that is allowed",
                code="LW-POLICY",
                stage=Stage.BUILD,
            )

    def _plan(self, checkout: Checkout, launch: Launch, source: CodeSource) -> Recipe:
        job, builder = source.job, launch.builder
        base = (job.base_image if job else "") or builder.accelerator or builder.base_image
        return plan_recipe(
            SourceFolder(checkout.path),
            dockerfile_override=source.dockerfile or (job.dockerfile if job else ""),
            entry_point=launch.entry_point,
            job_entry_point=launch.job_entry_point,
            base_image=base or self._base_image,
            python_version=launch.python_version,
            build_context=job.build_context if job else "",
            installer=installer(),
            cache_mounts=self._cache_mounts,
            may_lack_python=bool(base) and base == builder.accelerator,
        )

    def _tag(self, checkout: Checkout, recipe: Recipe, bases: Mapping[str, str]) -> str:
        return image_tag(
            origin=checkout.origin,
            content_id=checkout.content_id,
            dockerfile=_what_is_built(recipe),
            bases=bases,
            platform=self._platform,
        )

    async def _make(
        self, launch: Launch, checkout: Checkout, recipe: Recipe, bases: Mapping[str, str], tag: str
    ) -> _Made:
        output = BuildOutput(self._logs.start(launch.launch_id))
        local_tag = f"launch-worker/build:{tag}"
        async with scratch_folder(self._work_dir) as folder:
            context = folder / "context.tar"
            facts = await write_context(checkout.path, recipe, context)
            _log.info("build_started", tag=tag, context_bytes=facts.bytes, files=facts.files)
            timed = self._metrics.build_seconds.time()
            with effect("build_image"), self._metrics.building.track_inprogress(), timed:
                await self._builder.build(
                    context,
                    tag=local_tag,
                    labels={"launch-worker.deployment": self._deployment},
                    registry_auths={},
                    on_line=output.add,
                    dockerfile=DOCKERFILE,
                    bases=bases,
                )
        with effect("push_image"):
            digest = await self._registry.push(local_tag, tag, output.add)
        left_out = [
            f"not in the image: {path} (a link that leads out, a socket or a device)"
            for path in facts.left_out
        ]
        return _Made(digest, (*output.warnings, *left_out), output.failed)


@dataclass(frozen=True, slots=True)
class _Made:
    digest: str
    warnings: tuple[str, ...]
    failed_packages: tuple[str, ...]


def _is_private(image: str) -> bool:
    try:
        return parse_ecr_host(parse_reference(image).host) is not None
    except ValueError:
        return False  # refused with its own reason when its digest is asked for


def _allowed(image: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(image, glob) for glob in globs)


def _what_is_built(recipe: Recipe) -> str:
    """Everything but source and bases that changes the image: the Dockerfile, the folder it is applied to, what is
    left out of that and what is added."""
    added = (part for path_and_text in recipe.added for part in path_and_text)
    return "\0".join((recipe.dockerfile, recipe.context, recipe.ignore, *sorted(recipe.needed), *added))


def no_builder(path: str) -> BadMessage:
    """The refusal of a code launch, named at `path`, by a worker that builds nothing."""
    what = "is code, and this worker builds no images"
    remedy = "set LAUNCH_REGISTRY (and LAUNCH_BUILDER other than none), or name a ready image"
    return BadMessage((Problem(path, what, remedy),), code="LW-NO-BUILDER")
