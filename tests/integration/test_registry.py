"""Pushes and pulls between the real daemon and the local ECR."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiobotocore.config import AioConfig
from moto.ecr.models import ecr_backends

from tests.integration.docker_bench import DockerBench, cutting_proxy, docker_bench
from worker.clients.docker_errors import ImageUnknown, RegistryAuthFailed, RepositoryUnknown
from worker.clients.docker_types import RegistryAuth
from worker.errors import Again, Never, SettingsError, Unreachable
from worker.images.builder import ImageBuilder
from worker.images.registry import EcrRegistry
from worker.local.aws import ACCOUNT, REGION, LocalAws, running_aws
from worker.local.ecr import LocalEcr, running_ecr
from worker.local.registry_process import running_registry

if TYPE_CHECKING:
    from types_aiobotocore_ecr import ECRClient

pytestmark = pytest.mark.docker

NAME = "team/launch-dev"
TAG = "0123456789abcdef"


@dataclass
class Bench:
    """The daemon, the local ECR and a client of it."""

    docker: DockerBench
    local: LocalEcr
    ecr: ECRClient
    aws: LocalAws
    lines: list[str] = field(default_factory=list)
    regions: list[str] = field(default_factory=list)
    """Those that a client of its own was opened for."""

    def registry(self, name: str = NAME, address: str = "", **changes: Any) -> EcrRegistry:
        """The worker's view of repository `name`."""
        uri = f"{address or self.local.address}/{name}"
        return EcrRegistry(self.ecr, self.docker.engine, uri, other_region=self.client, **changes)

    @contextlib.asynccontextmanager
    async def client(self, region: str) -> AsyncIterator[ECRClient]:
        """A client of ECR in another Region."""
        self.regions.append(region)
        async with self.aws.session().client(
            "ecr", region_name=region, endpoint_url=self.aws.endpoint
        ) as client:
            yield client

    def builder(self) -> ImageBuilder:
        """Builds without a network."""
        return ImageBuilder(
            self.docker.engine,
            kind="docker",
            network="none",
            timeout=60,
            max_builds=2,
            work_dir=self.docker.folder,
            low_water_bytes=0,
        )

    async def image(self, name: str = "image", size: int = 1000) -> str:
        """A fresh local image with `size` bytes that do not compress; returns its tag."""
        context = self.docker.context("COPY data /data", data=os.urandom(size))
        tag = self.docker.tag(name)
        await self.builder().build(
            context, tag=tag, labels={self.docker.mark: ""}, registry_auths={}, on_line=self.lines.append
        )
        return tag

    async def local_digests(self, image: str) -> tuple[str, ...]:
        """What the daemon knows of the image's places in registries."""
        facts = await self.docker.engine.inspect_image(image)
        return facts.repo_digests if facts else ()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    config = AioConfig(retries={"total_max_attempts": 1})
    async with (
        running_aws() as aws,
        running_ecr() as local,
        aws.session().client("ecr", endpoint_url=aws.endpoint, config=config) as ecr,
        docker_bench(tmp_path) as docker,
    ):
        await ecr.create_repository(repositoryName=NAME, imageTagMutability="IMMUTABLE")
        yield Bench(docker, local, ecr, aws)


async def test_a_push_returns_the_digest_that_the_registry_confirms(bench: Bench) -> None:
    registry, image = bench.registry(), await bench.image()
    assert await registry.find(TAG) is None
    digest = await registry.push(image, TAG, bench.lines.append)
    assert await registry.find(TAG) == digest
    described = await bench.ecr.describe_images(repositoryName=NAME)
    assert [entry["imageDigest"] for entry in described["imageDetails"]] == [digest]
    assert await bench.local_digests(image) == ()  # the name was for the push only
    assert await bench.docker.engine.inspect_image(f"{registry.repository_uri}:{TAG}") is None
    assert any("The push refers to repository" in line for line in bench.lines)


async def test_the_same_image_again_is_a_success_and_another_is_not(bench: Bench) -> None:
    registry, image, other = bench.registry(), await bench.image(), await bench.image("other")
    digest = await registry.push(image, TAG, bench.lines.append)
    assert await registry.push(image, TAG, bench.lines.append) == digest
    with pytest.raises(Again, match=r"tag is immutable.*next try takes"):
        await registry.push(other, TAG, bench.lines.append)
    assert await registry.find(TAG) == digest


async def test_a_token_is_kept_until_shortly_before_its_end(bench: Bench) -> None:
    bench.local.token_lifetime = 1.0
    registry = bench.registry()
    first = await asyncio.gather(*(registry.auth() for _ in range(5)))
    assert len({auth.password for auth in first}) == 1
    await asyncio.sleep(0.95)  # before the end, in its last tenth
    second = await registry.auth()
    assert second.password != first[0].password
    assert (second.username, second.server) == ("AWS", bench.local.address)
    assert second.password not in repr(second)


@pytest.mark.parametrize("when", ["before the push", "in mid-push"])
async def test_an_expired_token_is_replaced_once(bench: Bench, when: str) -> None:
    image = await bench.image(size=3_000_000)
    host, _, port = bench.local.address.partition(":")
    expired = False
    async with cutting_proxy(host, int(port)) as proxy:
        registry = bench.registry(address=proxy.address)

        def expire(sent: int) -> None:
            nonlocal expired
            if sent > 1_000_000 and not expired:
                bench.local.expire_tokens()
                expired = True

        before = await registry.auth()
        if when == "in mid-push":
            proxy.on_sent = expire
        else:
            bench.local.expire_tokens()
        digest = await registry.push(image, TAG, bench.lines.append)
        assert (await registry.auth()).password != before.password
    assert expired == (when == "in mid-push")
    assert await registry.find(TAG) == digest
    assert sum("trying once more with a new token" in line for line in bench.lines) == 1


async def test_a_token_that_never_works_is_not_tried_for_ever(bench: Bench) -> None:
    bench.local.token_lifetime = -1.0
    registry, image = bench.registry(), await bench.image()
    with pytest.raises(RegistryAuthFailed, match="authorization token has expired"):
        await registry.push(image, TAG, bench.lines.append)
    assert sum("trying once more" in line for line in bench.lines) == 1


async def test_a_registry_that_dies_in_mid_push_is_worth_another_try(bench: Bench) -> None:
    image = await bench.image(size=3_000_000)
    host, _, port = bench.local.address.partition(":")
    async with cutting_proxy(host, int(port)) as proxy:
        registry = bench.registry(address=proxy.address, push_timeout=3.0)
        proxy.on_sent = lambda sent: proxy.cut() if sent > 1_000_000 else None
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable, match=r"not done after 3 s; last: .*Retrying in"):
            await registry.push(image, TAG, bench.lines.append)
        assert asyncio.get_running_loop().time() - began < 5
        assert await registry.find(TAG) is None
        proxy.on_sent = lambda sent: None
        await proxy.mend()
        assert await registry.push(image, TAG, bench.lines.append) == await registry.find(TAG)


async def test_a_registry_that_is_not_there_is_worth_another_try(bench: Bench) -> None:
    image = await bench.image()
    with pytest.raises(Unreachable, match="does not answer"):
        await bench.registry(address="127.0.0.1:1").push(image, TAG, bench.lines.append)


async def test_a_cancelled_push_leaves_the_registry_alone(bench: Bench) -> None:
    image = await bench.image(size=3_000_000)
    host, _, port = bench.local.address.partition(":")
    async with cutting_proxy(host, int(port)) as proxy:
        registry = bench.registry(address=proxy.address)
        begun = asyncio.Event()
        proxy.on_sent = lambda sent: begun.set() if sent > 500_000 else None
        async with asyncio.TaskGroup() as group:
            push = group.create_task(registry.push(image, TAG, bench.lines.append))
            await begun.wait()
            push.cancel()
        await asyncio.sleep(0.3)
        before = proxy.sent
        await asyncio.sleep(0.5)
        assert proxy.sent == before
    assert await registry.find(TAG) is None


async def test_a_missing_repository_is_refused_with_what_to_do(bench: Bench) -> None:
    registry, image = bench.registry("missing"), await bench.image()
    for action in (registry.ensure_repository(), registry.find(TAG), registry.push(image, TAG, print)):
        with pytest.raises(RepositoryUnknown, match="LAUNCH_CREATE_REPOSITORY") as raised:
            await action
        assert isinstance(raised.value, Again)  # the launches wait until somebody has created it


async def test_a_missing_repository_is_created_when_that_is_allowed(bench: Bench) -> None:
    registry, image = bench.registry("a/new-one", create_repository=True), await bench.image()
    assert await registry.find(TAG) is None
    digest = await registry.push(image, TAG, bench.lines.append)
    described = await bench.ecr.describe_repositories(repositoryNames=["a/new-one"])
    assert described["repositories"][0]["imageTagMutability"] == "IMMUTABLE"
    # Taken away under our feet: made again.
    await bench.ecr.delete_repository(repositoryName="a/new-one", force=True)
    assert await registry.push(image, TAG, bench.lines.append) == digest
    await bench.registry("a/new-one", create_repository=True).ensure_repository()


async def test_a_digest_that_the_registry_does_not_confirm_is_no_success(bench: Bench) -> None:
    registry, image = bench.registry(), await bench.image()

    def lose_it(line: str) -> None:
        if "digest: sha256:" in line:
            ecr_backends[ACCOUNT][REGION].repositories[NAME].images.clear()

    with pytest.raises(Again, match="but the registry has nothing there"):
        await registry.push(image, TAG, lose_it)


async def test_an_image_that_was_pruned_before_its_push(bench: Bench) -> None:
    with pytest.raises(Again, match="no longer on the docker daemon"):
        await bench.registry().push("launch-test/nothing:1", TAG, bench.lines.append)


async def test_logins_for_base_images_on_any_ecr_host(bench: Bench) -> None:
    registry = bench.registry()
    own = await registry.auth_for(f"{bench.local.address}/base:1")
    assert own == await registry.auth()
    same_region = await registry.auth_for(f"210987654321.dkr.ecr.{REGION}.amazonaws.com/base:1")
    assert same_region is not None
    assert own is not None
    assert same_region.password == own.password  # a token holds for a Region
    host = "210987654321.dkr-ecr-fips.eu-west-1.on.aws"
    for _ in range(2):
        other = await registry.auth_for(f"{host}/base@sha256:{'0' * 64}")
        assert other is not None
        assert (other.server, other.username) == (host, "AWS")
        assert other.password != own.password
    assert bench.regions == ["eu-west-1"]
    for public in ("python:3.11", "public.ecr.aws/docker/library/python:3", "not//valid"):
        assert await registry.auth_for(public) is None


async def test_a_base_image_in_a_region_that_does_not_exist(bench: Bench) -> None:
    with pytest.raises(Never, match="mars-north-1") as raised:
        await bench.registry().auth_for("210987654321.dkr.ecr.mars-north-1.amazonaws.com/base:1")
    assert raised.value.code == "LW-BASE-IMAGE"
    assert bench.regions == []


async def test_what_ecr_refuses_is_tried_again(bench: Bench) -> None:
    registry = bench.registry("x")  # shorter than ECR's names are
    with pytest.raises(Again, match=r"ECR refuses .*/x: .*ParamValidation[\s\S]*LAUNCH_REGISTRY"):
        await registry.ensure_repository()
    with pytest.raises(Again, match=r"ECR refuses .*/x: .*ParamValidation"):
        await registry.find(TAG)


async def test_a_login_that_was_refused_is_not_given_again(bench: Bench) -> None:
    registry, reference = bench.registry(), f"{bench.local.address}/base:1"
    first = await registry.auth_for(reference)
    assert first is not None
    second = await registry.auth_for(reference, refused=first)
    assert second is not None
    assert (
        await registry.auth_for(reference, refused=first) == second
    )  # one new token for all that were refused
    assert await registry.auth_for(reference) == second
    assert second != first


async def no_login(reference: str, *, refused: RegistryAuth | None = None) -> RegistryAuth | None:
    return None


async def test_a_private_base_image_is_pulled_with_a_login(bench: Bench) -> None:
    registry, image = bench.registry(), await bench.image()
    pinned = f"{registry.repository_uri}@{await registry.push(image, TAG, bench.lines.append)}"
    await bench.docker.engine.remove_image(image)
    assert await bench.docker.engine.inspect_image(pinned) is None
    with pytest.raises(RegistryAuthFailed):
        await bench.builder().base_digests([pinned], no_login)
    assert await bench.builder().base_digests([pinned], registry.auth_for) == {
        pinned: pinned.rpartition("@")[2]
    }
    assert await bench.docker.engine.inspect_image(pinned) is not None
    with pytest.raises(ImageUnknown, match="manifest unknown"):
        await bench.builder().base_digests([f"{registry.repository_uri}:missing"], registry.auth_for)
    with pytest.raises(ImageUnknown, match=r"not found|name unknown"):
        await bench.builder().base_digests([f"{bench.local.address}/nothing:1"], registry.auth_for)


async def test_a_pull_with_an_expired_login_is_tried_with_a_new_one(bench: Bench) -> None:
    registry, image = bench.registry(), await bench.image()
    pinned = f"{registry.repository_uri}@{await registry.push(image, TAG, bench.lines.append)}"
    await bench.docker.engine.remove_image(image)
    asked: list[RegistryAuth | None] = []

    async def logins(reference: str, *, refused: RegistryAuth | None = None) -> RegistryAuth | None:
        asked.append(refused)
        return await registry.auth_for(reference) if refused else stale

    stale = RegistryAuth("AWS", "expired", bench.local.address)
    assert await bench.builder().base_digests([pinned], logins) == {pinned: pinned.rpartition("@")[2]}
    assert asked == [None, stale]


async def test_the_newest_base_image_is_pulled_and_the_last_one_kept(bench: Bench) -> None:
    async def publish(name: str) -> str:
        await bench.docker.engine.tag_image(await bench.image(name), repository, "1")
        return await bench.docker.engine.push(
            repository, "1", auth=None, on_line=bench.lines.append, deadline=30
        )

    async with running_registry() as url:
        repository = f"{url.removeprefix('http://')}/base"
        reference = f"{repository}:1"
        first, builder = await publish("first"), bench.builder()
        assert await builder.base_digests([reference], no_login) == {reference: first}
        second = await publish("second")
        await bench.docker.engine.tag_image(
            bench.docker.tag("first"), repository, "1"
        )  # as on another machine
        assert await builder.base_digests([reference], no_login) == {reference: first}  # asked just now
        assert await bench.builder().base_digests([reference], no_login) == {reference: second}
    assert await bench.builder().base_digests([reference], no_login) == {reference: second}


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("127.0.0.1:5566/a:latest", "without tag or digest"),
        ("127.0.0.1:5566/UPPER", "lower case"),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com/a", "own Region"),
    ],
)
async def test_a_wrong_registry_setting_is_told_at_once(bench: Bench, uri: str, part: str) -> None:
    with pytest.raises(SettingsError, match=f"LAUNCH_REGISTRY.*{part}"):
        EcrRegistry(bench.ecr, bench.docker.engine, uri)
