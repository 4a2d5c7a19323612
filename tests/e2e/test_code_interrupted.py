"""SIGTERM and kill -9 in the middle of a fetch, a build and a push: one image, one job, and nothing is left.

`test_crashes` splits the same work at its edges.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable

import pytest
import pytest_asyncio

from tests.e2e.bench import Bench
from tests.e2e.code import SCRIPT, CodeBench, code_bench, reached, running_gate
from tests.e2e.conftest import Stack
from tests.e2e.launches import LaunchCase, numbered
from tests.e2e.process import WorkerProcess
from tests.e2e.together import Outcomes, Scenario, Scenarios, run_together
from tests.fakes.git_server import make_repository, running_git_server
from tests.integration.docker_bench import cutting_proxy

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

LINES = numbered(3)
GRACE = "0.3"


async def fetch(bench: Bench, number: signal.Signals) -> None:
    async with running_git_server(bench.folder) as server, code_bench(bench) as code:
        bench.environment["GIT_SSL_CAINFO"] = str(server.certificate)
        make_repository(server.root / "train.git", {SCRIPT: str(code.script(LINES)[SCRIPT])})
        server.stall = True
        case = code.launch(server.url("train.git"), LINES)
        worker = await bench.start(shutdown_grace=GRACE)
        await bench.send(case)
        await reached(server.stalled, "git asks its server")
        await _interrupted(code, worker, number)
        server.stall = False
        await _another_one(code, case, builds=1)


async def build(bench: Bench, number: signal.Signals) -> None:
    async with running_gate() as gate, code_bench(bench, LAUNCH_BUILD_NETWORK="host") as code:
        files = {**code.script(LINES), "Dockerfile": code.dockerfile(gate.step)}
        case = code.launch(await code.upload(files), LINES, dockerfile="Dockerfile")
        worker = await bench.start(shutdown_grace=GRACE)
        await bench.send(case)
        await reached(gate.entered, "the build is in its last step")
        await _interrupted(code, worker, number)
        gate.opened.set()
        await _another_one(code, case, builds=2)


async def push(bench: Bench, number: signal.Signals) -> None:
    assert bench.services.ecr is not None
    host, _, port = bench.services.ecr.address.partition(":")
    async with cutting_proxy(host, int(port)) as proxy, code_bench(bench, address=proxy.address) as code:
        content = {**code.script(LINES), "weights": os.urandom(16_000_000)}
        case = code.launch(await code.upload(content), LINES)
        worker = await bench.start(shutdown_grace="0")
        signalled_at: list[int] = []

        def interrupt(sent: int) -> None:
            if sent > 1_000_000 and not signalled_at:
                signalled_at.append(sent)
                proxy.flowing.clear()  # the worker may take a second to stop; the push must not end meanwhile
                worker.send_signal(number)

        proxy.on_sent = interrupt
        await bench.send(case)
        await _interrupted(code, worker, number, sent=True)
        assert signalled_at
        assert code.pushed() == [], "the push was over before it was interrupted"
        proxy.flowing.set()
        await _another_one(code, case, builds=2)


async def _interrupted(
    code: CodeBench, worker: WorkerProcess, number: signal.Signals, *, sent: bool = False
) -> None:
    """The worker has gone; when it was asked to, it has left nothing but the message, for anybody and at once."""
    if not sent:
        worker.send_signal(number)
    assert await worker.exit_code() == (0 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        await code.nothing_left()
        assert await code.bench.depth() == (1, 0)


async def _another_one(code: CodeBench, case: LaunchCase, *, builds: int) -> None:
    await code.bench.start()
    await code.audit(case)
    assert code.builds == builds


def _during(stage: Callable[[Bench, signal.Signals], Awaitable[None]], number: signal.Signals) -> Scenario:
    async def play(bench: Bench) -> None:
        await stage(bench, number)

    return play


INTERRUPTIONS: Scenarios = {
    f"{number.name} during {stage.__name__}": ("sqlite", _during(stage, number))
    for stage in (fetch, build, push)
    for number in (signal.SIGTERM, signal.SIGKILL)
}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def outcomes(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Outcomes:
    """What came of each interruption that is asked for."""
    return await run_together(INTERRUPTIONS, stack, tmp_path_factory, request.session)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
async def test_interruption(outcomes: Outcomes, interruption: str) -> None:
    if (error := outcomes[interruption]) is not None:
        raise error
