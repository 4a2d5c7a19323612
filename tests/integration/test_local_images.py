"""Base images made from Debian packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.local.executor_docker import docker_engine
from worker.local.images import ImageNotBuilt, ensure_busybox_image, ensure_python_image

STATE = Path(__file__).parents[2] / ".state"

pytestmark = pytest.mark.docker


async def _output(image: str, *command: str) -> str:
    async with docker_engine() as docker:
        config: dict[str, Any] = {"Image": image, "Cmd": list(command), "HostConfig": {"NetworkMode": "none"}}
        container = await docker.containers.run(config)
        try:
            assert (await container.wait())["StatusCode"] == 0
            return "".join(await container.log(stdout=True, stderr=True))
        finally:
            await container.delete(force=True)


async def test_busybox_has_a_shell_and_is_made_once() -> None:
    async with docker_engine() as docker:
        tag = await ensure_busybox_image(docker, STATE)
        before = (await docker.images.inspect(tag))["Id"]
        assert await ensure_busybox_image(docker, STATE) == tag
        assert (await docker.images.inspect(tag))["Id"] == before
        assert (await docker.images.inspect(tag))["Size"] < 5_000_000
    assert await _output(tag, "sh", "-c", "seq 3 | tr '\\n' ' '; id -un") == "1 2 3 root\n"


async def test_python_has_its_library_and_certificates() -> None:
    async with docker_engine() as docker:
        tag = await ensure_python_image(docker, STATE)
        assert (await docker.images.inspect(tag))["Size"] < 60_000_000
    script = (
        "import asyncio, bz2, ctypes, decimal, lzma, readline, sqlite3, ssl, uuid\n"
        "print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 100)"
    )
    assert await _output(tag, "python", "-c", script) == "True\n"


async def test_broken_package_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "debs" / "busybox"
    folder.mkdir(parents=True)
    (folder / "busybox-static_1_amd64.deb").write_bytes(b"not a package")
    (folder / "complete").touch()
    async with docker_engine() as docker:
        with pytest.raises(ImageNotBuilt, match=r"busybox-static_1_amd64\.deb cannot be read.*delete it"):
            await ensure_busybox_image(docker, tmp_path, tag="launch-local/never-built:1")
