"""The local ECR: pushes by a docker client, seen by the ECR API, refused as ECR refuses."""

from __future__ import annotations

import base64
import contextlib
import io
import tarfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiodocker
import aiohttp
import pytest
from aiodocker.exceptions import DockerError

from worker.errors import SettingsError
from worker.local.aws import running_aws
from worker.local.ecr import LocalEcr, running_ecr
from worker.local.executor_docker import docker_engine

if TYPE_CHECKING:
    from types_aiobotocore_ecr import ECRClient

pytestmark = pytest.mark.docker


@dataclass(frozen=True)
class Bench:
    """An ECR with a repository, its API, and a docker daemon."""

    ecr: LocalEcr
    api: ECRClient
    docker: aiodocker.Docker
    repository: str

    async def login(self) -> dict[str, str]:
        """Credentials, as the worker gets them."""
        data = (await self.api.get_authorization_token())["authorizationData"][0]
        user, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
        return {"username": user, "password": password, "serveraddress": self.ecr.address}

    async def push(self, auth: dict[str, str], tag: str = "v1", repository: str = "") -> str:
        """Build a tiny image, push it, return the digest that the registry told."""
        name = repository or self.repository
        await self.docker.images.build(fileobj=_context(), encoding="identity", tag=f"{name}:{tag}", rm=True)
        try:
            messages = await self.docker.images.push(name, tag=tag, auth=auth)
        finally:
            await self.docker.images.delete(f"{name}:{tag}", force=True, noprune=True)
        return str(messages[-1]["aux"]["Digest"])


def _context() -> io.BytesIO:
    """An image of its own for each call, so that nothing is 'already there'."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in (("Dockerfile", "FROM scratch\nCOPY id /id\n"), ("id", uuid.uuid4().hex)):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    buffer.seek(0)
    return buffer


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        docker = await stack.enter_async_context(docker_engine())
        aws = await stack.enter_async_context(running_aws())
        ecr = await stack.enter_async_context(running_ecr())
        api = await stack.enter_async_context(aws.session().client("ecr", endpoint_url=aws.endpoint))
        made = await api.create_repository(repositoryName="team/app")
        yield Bench(ecr, api, docker, made["repository"]["repositoryUri"])


async def _refusal(bench: Bench, auth: dict[str, str], **where: Any) -> str:
    with pytest.raises(DockerError) as error:
        await bench.push(auth, **where)
    return str(error.value.message)


async def test_pushed_image_is_described_with_the_registrys_digest(bench: Bench) -> None:
    assert bench.repository == f"{bench.ecr.address}/team/app"
    digest = await bench.push(await bench.login())
    images = await bench.api.describe_images(repositoryName="team/app", imageIds=[{"imageTag": "v1"}])
    (image,) = images["imageDetails"]
    assert image["imageDigest"] == digest
    assert image["imageTags"] == ["v1"]
    assert 0 < image["imageSizeInBytes"] < 10_000


async def test_tag_moves_to_the_newer_image(bench: Bench) -> None:
    auth = await bench.login()
    first = await bench.push(auth)
    second = await bench.push(auth)
    assert first != second
    images = await bench.api.describe_images(repositoryName="team/app", imageIds=[{"imageTag": "v1"}])
    assert [image["imageDigest"] for image in images["imageDetails"]] == [second]


async def test_immutable_tags_are_not_overwritten(bench: Bench) -> None:
    await bench.api.create_repository(repositoryName="fixed", imageTagMutability="IMMUTABLE")
    auth, repository = await bench.login(), f"{bench.ecr.address}/fixed"
    await bench.push(auth, repository=repository)
    message = await _refusal(bench, auth, repository=repository)
    assert "already exists" in message
    assert "tag is immutable" in message


async def test_unknown_repository(bench: Bench) -> None:
    message = await _refusal(bench, await bench.login(), repository=f"{bench.ecr.address}/nobody")
    assert (
        "The repository with name 'nobody' does not exist in the registry with id '123456789012'" in message
    )


async def test_expired_and_foreign_tokens(bench: Bench) -> None:
    bench.ecr.token_lifetime = 0
    assert "Your authorization token has expired. Reauthenticate" in await _refusal(
        bench, await bench.login()
    )
    bench.ecr.token_lifetime = 60
    good = await bench.login()
    await bench.push(good)
    bench.ecr.expire_tokens()
    assert "has expired" in await _refusal(bench, good)
    assert "Not Authorized" in await _refusal(bench, {**good, "password": "made-up"})


async def test_token_says_when_it_expires(bench: Bench) -> None:
    data = (await bench.api.get_authorization_token())["authorizationData"][0]
    left = data["expiresAt"].timestamp() - time.time()
    assert 11.9 * 3600 < left <= 12 * 3600
    assert data["proxyEndpoint"] == f"http://{bench.ecr.address}"


async def test_no_credentials_are_a_challenge(bench: Bench) -> None:
    url = f"http://{bench.ecr.address}/v2/"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 401
        assert "Basic realm=" in response.headers["WWW-Authenticate"]


async def test_taken_port_is_explained(bench: Bench) -> None:
    port = int(bench.ecr.address.rpartition(":")[2])
    with pytest.raises(SettingsError, match=rf"port {port} for the registry is in use.*--registry-port"):
        async with running_ecr(port):
            pass
