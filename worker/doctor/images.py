"""What a worker that builds images needs: the ECR repository and a docker daemon with room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.clients.aws import AwsClients, AwsRefused, call
from worker.clients.docker import docker_engine
from worker.clients.docker_types import DaemonFacts
from worker.doctor.check import Check, failed, ok, skipped
from worker.errors import Unreachable
from worker.images.builder import free_bytes
from worker.images.reference import parse_ecr_host, parse_reference
from worker.settings import Settings

_BUILDKIT_SINCE = 18
"""Docker 18.09 has version 2 of the build API (Docker Engine API v1.39)."""
_NO_BUILDS = "this worker builds nothing (LAUNCH_REGISTRY, LAUNCH_BUILDER): only ready images are run"


def builds(settings: Settings) -> bool:
    """The worker makes images of code."""
    return bool(settings.registry) and settings.builder != "none"


async def registry_checks(aws: AwsClients, settings: Settings) -> Sequence[Check]:
    """Login, repository, mutability of its tags."""
    if not builds(settings):
        return [skipped("registry", _NO_BUILDS)]
    try:
        reference = parse_reference(settings.registry)
    except ValueError as error:
        return [failed("registry", f"LAUNCH_REGISTRY: {error}", "give the URI of an ECR repository")]
    if reference.tag or reference.digest:
        return [failed("registry", "LAUNCH_REGISTRY has a tag or digest", "name the repository without it")]
    await call("GetAuthorizationToken", aws.ecr.get_authorization_token)
    host = parse_ecr_host(reference.host)
    account: Any = {"registryId": host.account} if host else {}
    login = ok("registry login", reference.host)
    try:
        answer = await call(
            "DescribeRepositories",
            lambda: aws.ecr.describe_repositories(repositoryNames=[reference.path], **account),
        )
    except AwsRefused as error:
        if error.aws_code != "RepositoryNotFoundException":
            raise
        if settings.create_repository:
            return [login, ok("registry", f"{settings.registry}: is created with the first image")]
        missing = f"the ECR repository {settings.registry} does not exist"
        remedy = (
            f"aws ecr create-repository --repository-name {reference.path} --image-tag-mutability IMMUTABLE"
        )
        return [login, failed("registry", missing, f"{remedy}, or set LAUNCH_CREATE_REPOSITORY=true")]
    tags = answer["repositories"][0].get("imageTagMutability", "MUTABLE")
    note = "" if tags == "IMMUTABLE" else "; IMMUTABLE is safer: a tag is the address of its content"
    return [login, ok("registry", f"{settings.registry}, tags {tags}{note}")]


async def docker_checks(settings: Settings) -> Sequence[Check]:
    """Ping, version, platform, builder, disk."""
    if not builds(settings):
        return [skipped("docker", _NO_BUILDS)]
    try:
        async with docker_engine() as engine:
            daemon = engine.daemon
    except Unreachable as error:
        return [failed("docker", str(error), "start docker, set DOCKER_HOST, or set LAUNCH_BUILDER=none")]
    return [_daemon(daemon, settings), _disk(daemon, settings)]


def _daemon(daemon: DaemonFacts, settings: Settings) -> Check:
    major = daemon.version.partition(".")[0]
    if settings.builder == "buildkit" and major.isdigit() and int(major) < _BUILDKIT_SINCE:
        return failed(
            "docker", f"version {daemon.version} has no BuildKit", "upgrade docker, or LAUNCH_BUILDER=docker"
        )
    emulated = (
        ""
        if daemon.platform == settings.platform
        else f"; builds for {settings.platform} need emulation (QEMU)"
    )
    return ok("docker", f"version {daemon.version}, {daemon.platform}, builder {settings.builder}{emulated}")


def _disk(daemon: DaemonFacts, settings: Settings) -> Check:
    folders = [Path(settings.work_dir or "/tmp"), daemon.root]  # noqa: S108  # only asked for its free space
    for folder in folders:
        free = free_bytes(folder)
        if free is not None and free < settings.build_low_water:
            return failed(
                "disk",
                f"{folder} has {_gigabytes(free)} free; {_gigabytes(settings.build_low_water)} are needed"
                " (LAUNCH_BUILD_LOW_WATER)",
                "make room (docker system prune), give it a larger disk, or lower the limit",
            )
    free = free_bytes(folders[0])
    return ok("disk", f"{_gigabytes(free or 0)} free, {_gigabytes(settings.build_low_water)} needed")


def _gigabytes(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"
