"""Builds on a real docker daemon, with both builders."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.integration.docker_bench import (
    DockerBench,
    cutting_proxy,
    docker_bench,
    eventually,
    processes,
    write_context,
)
from worker.clients.docker import docker_engine
from worker.clients.docker_errors import BuildFailed, DiskFull, ImageUnknown
from worker.clients.docker_types import RegistryAuth
from worker.errors import Never, SettingsError, Unreachable, WorkerError
from worker.images.build_network import INTERFACE, NETWORK
from worker.images.builder import ImageBuilder

pytestmark = pytest.mark.docker

Kind = Literal["docker", "buildkit"]
BOTH = pytest.mark.parametrize("kind", ["docker", "buildkit"])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[DockerBench]:
    async with docker_bench(tmp_path) as opened:
        yield opened


def image_builder(bench: DockerBench, kind: Kind = "docker", **changes: Any) -> ImageBuilder:
    options: dict[str, Any] = {
        "network": "none",
        "timeout": 60.0,
        "max_builds": 4,
        "work_dir": bench.folder,
        "low_water_bytes": 0,
    }
    return ImageBuilder(bench.engine, kind=kind, **{**options, **changes})


async def run_build(
    bench: DockerBench, builder: ImageBuilder, context: Path, name: str = "image"
) -> tuple[str, list[str]]:
    """Image id and lines."""
    lines: list[str] = []
    built = await builder.build(
        context, tag=bench.tag(name), labels={bench.mark: "yes"}, registry_auths={}, on_line=lines.append
    )
    return built.image_id, lines


async def no_login(reference: str, *, refused: RegistryAuth | None = None) -> RegistryAuth | None:
    return None


@BOTH
async def test_a_build_makes_a_labelled_image_and_tells_its_lines(bench: DockerBench, kind: Kind) -> None:
    context = bench.context(
        "COPY data /data",
        r"RUN printf 'one\n\033[32mtwo\033[0m\n'; printf '10%%\r100%%\n'; echo oops >&2; cat /data; echo",
        data="three ü".encode(),
    )
    image_id, lines = await run_build(bench, image_builder(bench, kind), context)
    facts = await bench.engine.inspect_image(bench.tag())
    assert facts is not None
    assert (facts.id, facts.os, facts.architecture) == (image_id, "linux", "amd64")
    assert facts.size > 1_000_000
    assert {"one", "two", "100%", "oops", "three ü"} <= set(lines)
    assert any("COPY data /data" in line for line in lines)
    await bench.engine.prune([bench.mark, "launch-worker"], older_than=3600)
    assert await bench.engine.inspect_image(bench.tag()) == facts
    await asyncio.sleep(1.1)  # the daemon counts in seconds
    await bench.engine.prune([bench.mark, "launch-worker"], older_than=0)
    assert await bench.engine.inspect_image(bench.tag()) is None


@BOTH
async def test_a_failing_step_is_named_with_its_last_lines(bench: DockerBench, kind: Kind) -> None:
    context = bench.context("RUN seq 1 50; echo it broke; exit 7")
    with pytest.raises(BuildFailed) as raised:
        await run_build(bench, image_builder(bench, kind), context)
    assert raised.value.code == "LW-BUILD-FAILED"
    assert "RUN seq 1 50" in raised.value.step
    assert "it broke" in raised.value.lines
    assert "code: 7" in str(raised.value)
    assert "\n50\n" in str(raised.value)


@BOTH
@pytest.mark.parametrize(
    ("dockerfile", "code", "part"),
    [
        ("FROM {base}\nBANANA x\n", "LW-DOCKERFILE", "unknown instruction: BANANA"),
        ("", "LW-DOCKERFILE", "cannot be empty"),
        ("ARG B\nFROM $B\n", "LW-DOCKERFILE", "should not be blank"),
        ("FROM Upper/Case\n", "LW-DOCKERFILE", "lowercase"),
        ("FROM {base}\nCOPY missing /x\n", "LW-BUILD-FAILED", "COPY missing /x"),
        ('FROM {base}\nRUN ["/missing"]\n', "LW-BUILD-FAILED", "/missing"),
    ],
)
async def test_what_is_wrong_with_a_dockerfile_is_told(
    bench: DockerBench, kind: Kind, dockerfile: str, code: str, part: str
) -> None:
    context = write_context(bench.folder / "context.tar", dockerfile.format(base=bench.base))
    with pytest.raises(Never) as raised:
        await run_build(bench, image_builder(bench, kind), context)
    assert raised.value.code == code
    assert part in str(raised.value)


@BOTH
async def test_a_base_image_of_a_silent_registry_is_worth_another_try(bench: DockerBench, kind: Kind) -> None:
    context = bench.context(base="127.0.0.1:1/missing:1")
    with pytest.raises(Unreachable, match="does not answer"):
        await run_build(bench, image_builder(bench, kind), context)


@BOTH
@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_a_build_that_is_given_up_stops_on_the_daemon(
    bench: DockerBench, kind: Kind, how: Literal["cancelled", "timed out"]
) -> None:
    seconds = str(random.randint(10**8, 10**9))
    builder = image_builder(bench, kind, timeout=60.0 if how == "cancelled" else 2.0)
    code = ""

    async def run() -> None:
        nonlocal code
        try:
            await run_build(bench, builder, bench.context(f"RUN sleep {seconds}"))
        except Never as error:
            code = error.code

    async with asyncio.TaskGroup() as group:
        build = group.create_task(run())
        assert await eventually(lambda: bool(processes(seconds)), 10)
        if how == "cancelled":
            build.cancel()
    assert await eventually(lambda: not processes(seconds), 10), "the step still runs"
    assert code == ("" if how == "cancelled" else "LW-BUILD-TIMEOUT")
    assert await bench.engine.inspect_image(bench.tag()) is None


@BOTH
async def test_a_caller_that_fails_in_the_middle_stops_the_build_too(bench: DockerBench, kind: Kind) -> None:
    seconds = str(random.randint(10**8, 10**9))

    def fail(line: str) -> None:
        if line == "stop":
            raise LookupError(line)

    with pytest.raises(LookupError):
        await image_builder(bench, kind).build(
            bench.context(f"RUN echo stop; sleep {seconds}"),
            tag=bench.tag(),
            labels={bench.mark: ""},
            registry_auths={},
            on_line=fail,
        )
    assert await eventually(lambda: not processes(seconds), 10)


@BOTH
async def test_a_daemon_that_goes_away_is_no_success(bench: DockerBench, kind: Kind) -> None:
    async with (
        cutting_proxy(unix="/var/run/docker.sock") as proxy,
        docker_engine(f"tcp://{proxy.address}") as engine,
    ):
        bench_through_proxy = DockerBench(engine, bench.folder, mark=bench.mark)
        lines: list[str] = []

        def cut_at(line: str) -> None:
            lines.append(line)
            if line == "now":
                proxy.cut()

        with pytest.raises(Unreachable, match="docker daemon"):
            await image_builder(bench_through_proxy, kind).build(
                bench.context("RUN echo now; sleep 5"),
                tag=bench.tag(),
                labels={bench.mark: ""},
                registry_auths={},
                on_line=cut_at,
            )
        assert lines[-1] == "now"
        with pytest.raises(Unreachable):
            await engine.inspect_image(bench.base)


async def test_no_daemon_is_worth_another_try(tmp_path: Path) -> None:
    for host in (f"unix://{tmp_path}/docker.sock", "tcp://127.0.0.1:1", "nonsense"):
        with pytest.raises(Unreachable, match="docker daemon"):
            async with docker_engine(host):
                pass


async def test_ten_builds_two_at_a_time(bench: DockerBench) -> None:
    builder = image_builder(bench, max_builds=2)
    running: set[str] = set()
    most = 0

    async def one(name: str) -> str:
        def started(line: str) -> None:
            nonlocal most
            running.add(name)
            most = max(most, len(running))

        built = await builder.build(
            bench.context("RUN true"),
            tag=bench.tag(name),
            labels={bench.mark: ""},
            registry_auths={},
            on_line=started,
        )
        running.discard(name)
        return built.image_id

    ids = await asyncio.gather(*(one(f"n{number}") for number in range(10)))
    assert len(set(ids)) == 10
    assert most == 2


async def test_the_architecture_is_checked_and_the_image_not_kept(bench: DockerBench) -> None:
    with pytest.raises(Never) as raised:
        await run_build(bench, image_builder(bench, platform="linux/arm64"), bench.context("RUN true"))
    assert raised.value.code == "LW-ARCHITECTURE"
    assert await bench.engine.inspect_image(bench.tag()) is None


async def test_nothing_is_built_on_a_full_disk(bench: DockerBench) -> None:
    builder = image_builder(bench, low_water_bytes=1 << 30, free=lambda folder: 1 << 20)
    with pytest.raises(DiskFull, match="less than 1024 MiB"):
        await run_build(bench, builder, bench.context())


@BOTH
async def test_a_full_disk_is_pruned_first(bench: DockerBench, kind: Kind) -> None:
    # Too little before, under the lock and after each prune but the last; then there is room.
    looks = iter([1] * (3 if kind == "docker" else 4))
    builder = image_builder(bench, kind, low_water_bytes=10, free=lambda folder: next(looks, 100))
    image_id, _ = await run_build(bench, builder, bench.context("RUN true"))
    assert image_id.startswith("sha256:")


async def test_a_disk_that_cannot_be_seen_does_not_stop_builds(bench: DockerBench) -> None:
    builder = image_builder(bench, low_water_bytes=1 << 60, free=lambda folder: None)
    image_id, _ = await run_build(bench, builder, bench.context())
    assert image_id.startswith("sha256:")


async def test_a_local_base_image_is_taken_as_it_is_and_asked_for_once(bench: DockerBench) -> None:
    builder = image_builder(bench)
    asked: list[str] = []

    async def login(reference: str, *, refused: RegistryAuth | None = None) -> RegistryAuth | None:
        asked.append(reference)
        return None

    image_id, _ = await run_build(bench, builder, bench.context(), "base")
    references = [bench.tag("base"), "scratch", bench.tag("base")]
    assert await builder.base_digests(references, login) == {bench.tag("base"): image_id}
    assert await builder.base_digests(references, login) == {bench.tag("base"): image_id}
    assert asked == [bench.tag("base")]


@pytest.mark.parametrize(
    ("reference", "kind", "code"),
    [
        ("127.0.0.1:1/missing:1", Unreachable, "LW-UNREACHABLE"),
        ("Upper:1", Never, "LW-DOCKERFILE"),
        ("x@sha256:0", Never, "LW-DOCKERFILE"),
    ],
)
async def test_a_base_image_that_cannot_be_had(
    bench: DockerBench, reference: str, kind: type[WorkerError], code: str
) -> None:
    with pytest.raises(kind) as raised:
        await image_builder(bench).base_digests([reference], no_login)
    assert raised.value.code == code
    assert not isinstance(raised.value, ImageUnknown)


def test_buildkit_cannot_take_a_network_by_name(tmp_path: Path) -> None:
    # The constructor does no I/O: any bench will do.
    with pytest.raises(SettingsError, match="LAUNCH_BUILD_NETWORK"):
        make_without_daemon(tmp_path, network="mine")


def make_without_daemon(folder: Path, network: str) -> ImageBuilder:
    from worker.clients.docker import DockerEngine
    from worker.clients.docker_types import DaemonFacts

    engine = DockerEngine(None, DaemonFacts("1", "linux/amd64", folder))  # type: ignore[arg-type]
    return ImageBuilder(
        engine,
        kind="buildkit",
        network=network,
        timeout=1,
        max_builds=1,
        work_dir=folder,
        low_water_bytes=0,
    )


@BOTH
async def test_link_local_addresses_are_out_of_reach_without_a_network(
    bench: DockerBench, kind: Kind
) -> None:
    context = bench.context("RUN nc -w 3 169.254.169.254 80 </dev/null")
    with pytest.raises(BuildFailed, match="Network is unreachable"):
        await run_build(bench, image_builder(bench, kind, network="none"), context)


@BOTH
async def test_what_a_build_can_reach_is_found_out_by_a_build(bench: DockerBench, kind: Kind) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    probe = image_builder(bench, kind, network="host").reaches
    await run_build(bench, image_builder(bench, kind), bench.context("COPY a /a", base="scratch", a=b""))
    async with server:
        assert await probe(bench.base, "127.0.0.1", port) is True
        unplugged = image_builder(bench, kind, network="none")
        assert await unplugged.reaches(bench.base, "127.0.0.1", port) is False
        assert await probe(bench.tag(), "127.0.0.1", port) is None
    assert await probe(bench.base, "127.0.0.1", port) is False
    assert await bench.engine.inspect_image(f"launch-worker/probe:127.0.0.1-{port}") is None


async def test_classic_builds_get_a_bridge_of_their_own(bench: DockerBench) -> None:
    try:
        builder = image_builder(bench, network="")
        async with asyncio.TaskGroup() as group:
            for name in ("one", "two"):
                group.create_task(
                    run_build(bench, builder, bench.context("RUN test -e /sys/class/net/eth0"), name)
                )
        assert (Path("/sys/class/net") / INTERFACE).exists()
        _, lines = await run_build(bench, builder, bench.context("RUN true"), "again")
        assert lines
    finally:
        await bench.engine.remove_network(NETWORK)
