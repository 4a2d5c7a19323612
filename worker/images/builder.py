"""Builds: a few at a time, within time and disk, from pinned bases, for the right architecture."""

from __future__ import annotations

import asyncio
import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from worker.clients.docker_errors import BuildFailed, DiskFull
from worker.clients.docker_types import RegistryAuth
from worker.errors import Again, Never, Stage
from worker.images.bases import AuthFor, BaseImages
from worker.images.build_network import LABEL, BuildNetwork

if TYPE_CHECKING:
    from worker.clients.docker import DockerEngine

_KEEP = 3600.0
"""Seconds that a built image stays on the daemon at least: its push must not lose it."""
_KEEP_UNTAGGED = 86400.0
"""The same for nameless images, which may be somebody else's."""
_TRYING = "launch-worker-probe-tries"
_PROBE = f"""\
FROM {{image}}
RUN if command -v python3 >/dev/null; then echo {_TRYING}; \
python3 -c "import socket; socket.create_connection(('{{address}}', {{port}}), 3)"; \
else command -v nc >/dev/null && echo {_TRYING} && nc -w 3 {{address}} {{port}} </dev/null; fi
"""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image on the daemon, named as it was asked for."""

    image_id: str
    architecture: str


def free_bytes(folder: Path) -> int | None:
    """Free bytes of the file system that holds `folder`; None if this process cannot see it."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


class ImageBuilder:
    """Builds on one docker daemon.

    `network`: LAUNCH_BUILD_NETWORK, see `build_network`; `timeout`: seconds of one build; `max_builds`: at once;
    `platform`: what SageMaker runs (`linux/arm64` for Graviton instances); `work_dir`: where build contexts lie;
    `low_water_bytes`: free disk below which nothing is built, for `work_dir` and, where this process can see it, for
    the daemon's folder. Constructor raises `SettingsError` for a network that the builder cannot use."""

    def __init__(
        self,
        docker: DockerEngine,
        *,
        kind: Literal["docker", "buildkit"],
        network: str,
        timeout: float,
        max_builds: int,
        work_dir: Path,
        low_water_bytes: int,
        platform: str = "linux/amd64",
        free: Callable[[Path], int | None] = free_bytes,
    ) -> None:
        self._docker = docker
        self._buildkit = kind == "buildkit"
        self._network = BuildNetwork(docker, network, buildkit=self._buildkit)
        self._timeout = timeout
        self._builds = asyncio.Semaphore(max_builds)
        self._platform = platform
        # Named only if it is a foreign one: BuildKit then asks the registry even for an image that is there.
        self._foreign_platform = None if platform == docker.daemon.platform else platform
        self._work_dir = work_dir
        self._low_water = low_water_bytes
        self._free = free
        self._pruning = asyncio.Lock()
        self._bases = BaseImages(docker, self._foreign_platform)

    async def base_digests(self, references: Sequence[str], auth_for: AuthFor) -> dict[str, str]:
        """The digest of each base image, pulled if its registry has a newer one; `scratch` has none.

        An image that is only here (made locally, or its registry cannot be reached) is taken as it is: its digest,
        or its id if it never saw a registry. Raises `ImageUnknown` or another `Never` when there is no such image,
        `Again` when it is not here and its registry cannot be reached."""
        return await self._bases.digests(references, auth_for)

    async def build(
        self,
        context: Path,
        *,
        tag: str,
        labels: Mapping[str, str],
        registry_auths: Mapping[str, RegistryAuth],
        on_line: Callable[[str], None],
        dockerfile: str = "Dockerfile",
        bases: Mapping[str, str] | None = None,
    ) -> BuiltImage:
        """Build the tar file `context`, in which `dockerfile` is a path, as `tag`; waits for its turn. Cancelling
        stops the build on the daemon.

        Raises `Never` (LW-BUILD-FAILED, LW-BUILD-TIMEOUT, LW-DOCKERFILE, LW-BASE-IMAGE, LW-ARCHITECTURE), `Again`
        (`DiskFull`, `RegistryAuthFailed`, `Unreachable`, …)."""
        async with self._builds:
            await self._make_room()
            await self._bases.check_unmoved(bases or {})
            try:
                async with asyncio.timeout(self._timeout):
                    image_id = await self._build(
                        context, tag, labels, registry_auths, on_line, dockerfile=dockerfile
                    )
            except TimeoutError as error:
                raise Never(
                    f"the image build was stopped after {self._timeout:g} s; make it shorter or raise"
                    " LAUNCH_BUILD_TIMEOUT",
                    code="LW-BUILD-TIMEOUT",
                    stage=Stage.BUILD,
                ) from error
            return await self._checked(image_id, tag)

    async def reaches(self, image: str, address: str, port: int) -> bool | None:
        """Whether a RUN step of a build from `image` can connect to `address`; None if the image has no shell with
        python3 or nc to try it with. Raises `Again`."""
        dockerfile = _PROBE.format(image=image, address=address, port=port).encode()
        lines: list[str] = []
        tag = f"{LABEL}/probe:{address}-{port}"
        with tempfile.TemporaryDirectory(dir=self._work_dir, prefix="probe-") as folder:
            context = Path(folder) / "context.tar"
            await asyncio.to_thread(_write_tar, context, "Dockerfile", dockerfile)
            try:
                await self._build(context, tag, {LABEL: "probe"}, {}, lines.append, cached=False)
            except BuildFailed:
                return False if _TRYING in lines else None
        await self._docker.remove_image(tag, keep_parents=True)  # another build may stand on them
        return True

    async def _build(
        self,
        context: Path,
        tag: str,
        labels: Mapping[str, str],
        registry_auths: Mapping[str, RegistryAuth],
        on_line: Callable[[str], None],
        *,
        dockerfile: str = "Dockerfile",
        cached: bool = True,
    ) -> str:
        return await self._docker.build(
            context,
            tag=tag,
            buildkit=self._buildkit,
            labels={LABEL: "", **labels},
            network=await self._network.name(),
            platform=self._foreign_platform,
            registry_auths=registry_auths,
            on_line=on_line,
            dockerfile=dockerfile,
            cached=cached,
        )

    async def _checked(self, image_id: str, tag: str) -> BuiltImage:
        facts = await self._docker.inspect_image(image_id)
        if facts is None:
            raise Again(f"the built image {image_id} is no longer on the docker daemon")
        if f"{facts.os}/{facts.architecture}" != self._platform:
            await self._docker.remove_image(tag, keep_parents=True)  # another build may stand on them
            raise Never(
                f"the image is for {facts.os}/{facts.architecture}, the training instances run {self._platform};"
                f" take a base image for {self._platform}",
                code="LW-ARCHITECTURE",
                stage=Stage.BUILD,
            )
        return BuiltImage(image_id=facts.id, architecture=facts.architecture)

    async def _make_room(self) -> None:
        """Raises `DiskFull` when there is too little disk, also without our unused images."""
        if await self._enough():
            return
        async with self._pruning:
            if not await self._enough():
                await self._prune()
        if not await self._enough():
            raise DiskFull(
                f"less than {self._low_water >> 20} MiB are free for builds ({self._docker.daemon.root},"
                f" {self._work_dir}), also without this worker's unused images: disk full"
            )

    async def _prune(self) -> None:
        await self._docker.prune([LABEL], older_than=_KEEP)
        if not await self._enough():
            # What failed builds left: it has neither name nor label.
            await self._docker.prune([], older_than=_KEEP_UNTAGGED, untagged=True)
        if self._buildkit and not await self._enough():
            await self._docker.prune_build_cache(older_than=_KEEP)

    async def _enough(self) -> bool:
        for folder in (self._docker.daemon.root, self._work_dir):
            free = await asyncio.to_thread(self._free, folder)
            if free is not None and free < self._low_water:
                return False
        return True


def _write_tar(path: Path, name: str, content: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
