"""What builds rest on fails in the middle, and comes back: the launch is tried again and succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.bench import Bench
from tests.e2e.code import code_bench, reached, running_gate
from tests.e2e.conftest import Stack
from tests.e2e.launches import numbered
from tests.e2e.together import Outcomes, Scenarios, run_together
from tests.integration.docker_bench import CuttingProxy, cutting_proxy

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

DOCKER_SOCKET = "/var/run/docker.sock"
LINES = numbered(3)


async def registry_dies_in_mid_push(bench: Bench) -> None:
    """The daemon itself goes on trying: back in time, the registry gets the image in the same try."""
    async with before_registry(bench) as proxy, code_bench(bench, address=proxy.address) as code:
        cut = once_beyond(proxy, 1_000_000, proxy.cut)
        content = {**code.script(LINES), "weights": os.urandom(8_000_000)}
        case = code.launch(await code.upload(content), LINES)
        await bench.start()
        await bench.send(case)
        await reached(cut, "the push is under way")
        assert code.pushed() == []
        await asyncio.sleep(1)
        await proxy.mend()
        await code.audit(case)
        assert any("Retrying in" in line for line in code.build_log(case))
        assert code.builds == 1


async def registry_away(bench: Bench) -> None:
    """It is not back in time: again, and what was built is not built from nothing."""
    async with (
        running_gate() as gate,
        before_registry(bench) as proxy,
        code_bench(bench, address=proxy.address, LAUNCH_BUILD_NETWORK="host") as code,
    ):
        files = {**code.script(LINES), "Dockerfile": code.dockerfile(gate.step)}
        case = code.launch(await code.upload(files), LINES, dockerfile="Dockerfile")
        worker = await bench.start()
        await bench.send(case)
        await reached(gate.entered, "the build is in its last step")
        proxy.cut()
        gate.opened.set()
        again = await worker.wait_for("launch_again")
        assert "the registry does not answer" in again["error"]
        await code.nothing_left()
        await proxy.mend()
        await code.audit(case)
        assert any("Using cache" in line for line in code.build_log(case))
        assert code.builds == 2


async def daemon_lost_in_mid_build(bench: Bench) -> None:
    """The connection to the docker daemon breaks, and for a while there is none."""
    async with (
        running_gate() as gate,
        cutting_proxy(unix=DOCKER_SOCKET) as proxy,
        code_bench(bench, LAUNCH_BUILD_NETWORK="host", DOCKER_HOST=f"tcp://{proxy.address}") as code,
    ):
        files = {**code.script(LINES), "Dockerfile": code.dockerfile(gate.step)}
        case = code.launch(await code.upload(files), LINES, dockerfile="Dockerfile")
        worker = await bench.start()
        await bench.send(case)
        await reached(gate.entered, "the build is in its last step")
        proxy.cut()
        again = await worker.wait_for("launch_again")
        assert "docker daemon went away" in again["error"]
        await code.nothing_left()
        gate.opened.set()
        await proxy.mend()
        await code.audit(case)
        assert code.builds == 2


async def disk_full(bench: Bench) -> None:
    """Nothing is built below the low-water mark; somebody makes room and starts the worker again."""
    async with code_bench(bench) as code:
        case = code.launch(await code.upload(code.script(LINES)), LINES)
        worker = await bench.start(build_low_water=str(2 * shutil.disk_usage(Path("/")).total))
        await bench.send(case)
        again = await worker.wait_for("launch_again")
        assert "disk full" in again["error"]
        assert code.pushed() == []
        await code.nothing_left()
        worker.terminate()
        assert await worker.exit_code() == 0
        await bench.start()
        await code.audit(case)


def before_registry(bench: Bench) -> contextlib.AbstractAsyncContextManager[CuttingProxy]:
    """A proxy before the local ECR."""
    assert bench.services.ecr is not None
    host, _, port = bench.services.ecr.address.partition(":")
    return cutting_proxy(host, int(port))


def once_beyond(proxy: CuttingProxy, size: int, action: Callable[[], None]) -> asyncio.Event:
    """Do `action` once when so many bytes have been sent; the event says that it happened."""
    done = asyncio.Event()

    def look(sent: int) -> None:
        if sent > size and not done.is_set():
            done.set()
            action()

    proxy.on_sent = look
    return done


FAULTS: Scenarios = {
    scenario.__name__: ("sqlite", scenario)
    for scenario in (registry_dies_in_mid_push, registry_away, daemon_lost_in_mid_build, disk_full)
}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def outcomes(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Outcomes:
    """What came of each fault that is asked for."""
    return await run_together(FAULTS, stack, tmp_path_factory, request.session)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS)
async def test_fault(outcomes: Outcomes, fault: str) -> None:
    if (error := outcomes[fault]) is not None:
        raise error


async def test_token_expires_in_mid_push(bench: Bench) -> None:
    """By itself: all tokens of the stack are too old at once. Nobody notices."""
    async with before_registry(bench) as proxy, code_bench(bench, address=proxy.address) as code:
        expired = once_beyond(proxy, 1_000_000, code.ecr.expire_tokens)
        content = {**code.script(LINES), "weights": os.urandom(8_000_000)}
        case = code.launch(await code.upload(content), LINES)
        worker = await bench.start()
        await bench.send(case)
        await code.audit(case)
        assert expired.is_set()
        assert any("trying once more with a new token" in line for line in code.build_log(case))
        assert worker.events("launch_again") == []
        assert code.builds == 1
