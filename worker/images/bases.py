"""Base images: the digest behind each FROM, as new as its registry has it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from worker.clients.docker_errors import ImageUnknown, RegistryAuthFailed
from worker.clients.docker_types import ImageFacts, RegistryAuth
from worker.errors import Again, Never, Stage, WorkerError
from worker.images.reference import ImageReference, parse_reference
from worker.ops.logging import get_logger

if TYPE_CHECKING:
    from worker.clients.docker import DockerEngine

_FRESH = 300.0
"""Seconds for which an answer holds: a hundred launches from one base ask its registry once (Docker Hub counts)."""

_log = get_logger()


class AuthFor(Protocol):
    """Reference → login of its registry, or None; another one than `refused`."""

    async def __call__(
        self, reference: str, *, refused: RegistryAuth | None = None
    ) -> RegistryAuth | None: ...


class BaseImages:
    """Pulls base images to one docker daemon. `platform`: None for the daemon's own."""

    def __init__(self, docker: DockerEngine, platform: str | None) -> None:
        self._docker = docker
        self._platform = platform
        self._known: dict[str, tuple[float, str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def digests(self, references: Sequence[str], auth_for: AuthFor) -> dict[str, str]:
        """See `ImageBuilder.base_digests`."""
        wanted = [reference for reference in dict.fromkeys(references) if reference != "scratch"]
        return {reference: await self._fresh_digest(reference, auth_for) for reference in wanted}

    async def check_unmoved(self, digests: Mapping[str, str]) -> None:
        """What the daemon has under these names is still what the tag was made of; else `Again`: a build that waited
        for its turn must not take another base than its tag says."""
        for reference, digest in digests.items():
            image = await self._docker.inspect_image(reference)
            if image is None or _digest_of(image, parse_reference(reference)) != digest:
                self._known.pop(reference, None)
                raise Again(f"the base image {reference} changed while the build waited", retry_after=1.0)

    async def _fresh_digest(self, reference: str, auth_for: AuthFor) -> str:
        loop = asyncio.get_running_loop()
        async with self._locks.setdefault(reference, asyncio.Lock()):
            until, digest = self._known.get(reference, (0.0, ""))
            if loop.time() >= until or await self._docker.inspect_image(reference) is None:
                digest = await self._digest(reference, auth_for)
                self._known[reference] = (loop.time() + _FRESH, digest)
            return digest

    async def _digest(self, reference: str, auth_for: AuthFor) -> str:
        try:
            parsed = parse_reference(reference)
        except ValueError as error:
            message = f"the Dockerfile's base image: {error}"
            raise Never(message, code="LW-DOCKERFILE", stage=Stage.BUILD) from error
        here = await self._docker.inspect_image(reference)
        if here and parsed.digest:
            return parsed.digest
        try:
            await self._pull(reference, auth_for)
        except WorkerError as error:
            if here is None:
                raise
            _log.warning("base_image_not_refreshed", image=reference, error=str(error))
            return _digest_of(here, parsed)
        pulled = await self._docker.inspect_image(reference)
        if pulled is None:
            raise Again(f"the base image {reference} was pulled and is not on the docker daemon")
        return _digest_of(pulled, parsed)

    async def _pull(self, reference: str, auth_for: AuthFor) -> None:
        """A refused login is replaced once: ECR may end a token before its time."""
        auth = await auth_for(reference)
        try:
            await self._docker.pull(reference, auth, self._platform)
        except (RegistryAuthFailed, ImageUnknown) as error:
            # Of a private repository many registries say that it may not exist.
            if auth is None or (isinstance(error, ImageUnknown) and "denied" not in str(error)):
                raise
            await self._docker.pull(reference, await auth_for(reference, refused=auth), self._platform)


def _digest_of(image: ImageFacts, reference: ImageReference) -> str:
    """What the image is in its repository; else in any other; else the daemon's own id."""
    by_repository = dict(entry.rpartition("@")[::2] for entry in image.repo_digests)
    known = by_repository.get(reference.repository) or min(by_repository.values(), default=image.id)
    return reference.digest or known
