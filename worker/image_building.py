"""The composition of what builds images: registry, docker daemon, git, sources. `app` puts it into leg 1."""

from __future__ import annotations

import functools

from worker.building import Building
from worker.clients.aws_calls import counted_ecr_client
from worker.images.builder import ImageBuilder
from worker.images.registry import EcrRegistry
from worker.ledger.build_lock import BuildLocks
from worker.resources import Opened
from worker.settings import inherited_environment
from worker.sources.checkout import SourceLimits
from worker.sources.fetch import Sources
from worker.sources.git import GitClient
from worker.sources.git_command import INHERITED, INHERITED_PREFIXES
from worker.sources.git_credentials import GitCredentials
from worker.sources.job_code import JobCodeFetcher
from worker.tracking.build_log import BuildLogs


def image_building(parts: Opened, locks: BuildLocks, build_logs: BuildLogs) -> Building | None:
    """What makes images of code, as the settings say; None: only ready images are run."""
    settings = parts.settings
    if parts.docker is None:
        return None
    registry = EcrRegistry(
        parts.aws.ecr,
        parts.docker,
        settings.registry,
        create_repository=settings.create_repository,
        secrets=parts.secrets,
        other_region=functools.partial(counted_ecr_client, parts.metrics),
    )
    builder = ImageBuilder(
        parts.docker,
        kind="buildkit" if settings.builder == "buildkit" else "docker",
        network=settings.build_network,
        timeout=settings.build_timeout,
        max_builds=settings.max_builds,
        work_dir=parts.work_dir,
        low_water_bytes=settings.build_low_water,
        platform=settings.platform,
    )
    git = GitClient(
        environ=inherited_environment(INHERITED, INHERITED_PREFIXES),
        credentials=GitCredentials(settings.git_credentials, parts.secrets),
        allowed_hosts=settings.allowed_git_hosts,
    )
    limits = SourceLimits(settings.source_max_bytes, settings.source_max_files, settings.fetch_timeout)
    return Building(
        sources=Sources(
            s3=parts.aws.s3,
            git=git,
            work_dir=parts.work_dir,
            limits=limits,
            jobs=JobCodeFetcher(parts.jobs, git, limits) if parts.jobs else None,
        ),
        builder=builder,
        registry=registry,
        locks=locks,
        logs=build_logs,
        metrics=parts.metrics,
        base_image=settings.base_image,
        platform=settings.platform,
        deployment=settings.deployment,
        work_dir=parts.work_dir,
        cache_mounts=settings.builder == "buildkit",
        allowed_images=settings.allowed_images,
    )
