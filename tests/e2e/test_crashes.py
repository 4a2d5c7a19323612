"""kill -9 before and after every effect on the outside world; a new worker goes on and nothing shows.

Nearly all of the time is waiting, so the crashes happen side by side, each with a queue, a ledger and workers of its
own; each is a test that shows how its own crash went.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import get_args

import pytest
import pytest_asyncio

from tests.e2e.audit import audit, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.code import code_bench
from tests.e2e.conftest import Stack
from tests.e2e.jobs import add_code, add_job, launch_job
from tests.e2e.launches import PROJECT, LaunchCase, numbered
from tests.e2e.queues import MIRROR, queued
from tests.e2e.together import Outcomes, Scenario, Scenarios, run_together
from worker.aio import EffectName
from worker.intake.unstarted import NO_INIT
from worker.launch.record import LaunchState
from worker.local.stack import ENTITY

docker = pytest.mark.docker
on_the_stack = pytest.mark.asyncio(loop_scope="package")

OF_A_SUCCESS: tuple[EffectName, ...] = (
    "write_intent",
    "claim_run",
    "write_waiting",
    "delete_message",
    "create_training_job",
    "write_accepted",
    "open_companion",
    "assign_log_batch",
    "post_log_batch",
    "upload_log_file",
    "finish_companion",
    "write_finished",
)
OF_A_REFUSAL: tuple[EffectName, ...] = ("write_refused", "fail_queue_item", "copy_to_dlq")

RETRY = {"retry": "internal=1", "retry_pause": "0.1"}
OF_A_MIRROR: tuple[EffectName, ...] = ("register_agent", "pop_queue_item", "send_launch", "ack_queue_item")

OF_A_BUILD: tuple[EffectName, ...] = ("fetch_source", "build_image", "push_image")


async def success(bench: Bench, point: str) -> None:
    case = bench.launch(numbered(4), pause=0.25)
    await _killed(bench, point, case.body)
    await bench.start()
    await audit(bench, case)


async def refusal(bench: Bench, point: str) -> None:
    item = bench.services.wandb.push(ENTITY, "crash", {})
    case = bench.launch(instance_type="ml.p5.48xlarge", item_id=item.id)
    policy = {"allowed_instance_types": "ml.m5.*"}
    await _killed(bench, point, case.body, **policy)
    await bench.start(**policy)
    letters = await bench.dead_letters(1)
    await queue_empty(bench)
    assert {letter["MessageAttributes"]["launchId"]["StringValue"] for letter in letters} == {case.launch_id}
    record = await bench.record(case)
    assert record is not None
    assert (record.state, record.reported) == (LaunchState.REFUSED, True)
    assert item.error is not None
    assert bench.jobs(case) == []


async def build(bench: Bench, point: str) -> None:
    async with code_bench(bench) as code:
        case = code.launch(await code.upload(code.script(lines := numbered(3))), lines)
        await _killed(bench, point, case.body)
        await bench.start()
        await code.audit(case)
        # Before the build nothing was made, and what was pushed is found; between them it is made again.
        made_once = point.endswith("fetch_source") or point == "after:push_image"
        assert code.builds == (1 if made_once else 2)


async def job(bench: Bench, point: str) -> None:
    """A W&B job with code: it is looked up again, and the same is built."""
    async with code_bench(bench) as code:
        lines = numbered(3)
        source = {"artifact": add_code(bench, code.script(lines)), "entrypoint": ["sh", "train.sh"]}
        case = launch_job(bench, add_job(bench, "artifact", source), lines)
        await _killed(bench, point, case.body)
        await bench.start()
        await code.audit(case)


async def stop(bench: Bench, point: str) -> None:
    case = bench.launch(numbered(2), tail="sleep 60")
    worker = await bench.start(crash_at=point)
    await bench.send(case)
    await bench.lines_in_wandb(case, 2)
    bench.press_stop(case)
    assert await worker.exit_code() == -signal.SIGKILL
    await bench.start()
    await audit(bench, case, end="stopped by this worker", reason="Stop was pressed", exit_code=1)


async def retry(bench: Bench, point: str) -> None:
    case = failing_once(bench)
    await _killed(bench, point, case.body, **RETRY)
    await bench.start(**RETRY)
    await audit(bench, replace(case, printed=[*case.printed] * 2), attempts=2)


async def second_attempt(bench: Bench, point: str) -> None:
    """The worker that makes the further attempt dies, too."""
    case = failing_once(bench)
    await _killed(bench, "after:write_retry", case.body, **RETRY)
    await _killed(bench, point, **RETRY)
    await bench.start(**RETRY)
    await audit(bench, replace(case, printed=[*case.printed] * 2), attempts=2)


async def cancelled_retry(bench: Bench, point: str) -> None:
    case = failing_once(bench)
    slow = {**RETRY, "retry_pause": "600"}
    worker = await bench.start(crash_at=point, **slow)
    await bench.send(case)
    await worker.wait_for("attempt_follows")
    bench.press_stop(case)
    assert await worker.exit_code() == -signal.SIGKILL
    await bench.start(**slow)
    await audit(bench, case, end="stopped by this worker", reason="Stop was pressed", exit_code=1)


def failing_once(bench: Bench) -> LaunchCase:
    """A launch whose first job fails for no fault of its code, after it has printed all."""
    case = bench.launch(numbered(3), pause=0.2)
    reason = "InternalServerError:  We encountered an internal error.  Please try again."
    bench.services.sagemaker.failing_jobs[case.job_name] = reason
    return case


async def mirror(bench: Bench, point: str) -> None:
    """Between pop and send the item returns to W&B's queue; between send and ack it is mirrored twice."""
    queue = f"crash-{bench.deployment}"
    item, case = queued(bench, queue, numbered(2))
    started = bench.services.wandb.run_by_hand(ENTITY, PROJECT, case.run_id)
    mirror = await bench.start("mirror", crash_at=point, wandb_queues=queue, **MIRROR)
    assert await mirror.exit_code() == -signal.SIGKILL, f"the mirror never came to {point}"
    await bench.start("run", "--mirror", wandb_queues=queue, **MIRROR)
    await audit(bench, case)
    assert (item.state, item.run_name, item.error) == ("CLAIMED", case.run_id, None)
    assert started.state == "running"


async def unstarted(bench: Bench, point: str) -> None:
    """A run that the container never started is told on the queue item, with the end of its log."""
    agent = f"agent-{bench.deployment}"
    files = bench.services.wandb.run_by_hand(ENTITY, "model-registry", agent)
    item, case = queued(bench, f"crash-{bench.deployment}", numbered(2))
    message = {**case.message, "agentRun": agent, "entity": ENTITY}
    await _killed(bench, point, json.dumps(message), init_grace="0")
    await bench.start(init_grace="0")
    await audit(bench, case)
    path = f"{item.id}/error/error.log"
    assert item.error == {"message": NO_INIT, "stage": "run", "filePaths": [path]}
    assert files.files[path] == b"step 0 on algo-1\nstep 1 on algo-1\n"


async def takeover(bench: Bench, point: str) -> None:
    """The first heir dies, too."""
    case = bench.launch(numbered(4), pause=0.25)
    await _killed(bench, "after:post_log_batch", case.body)
    await _killed(bench, point)
    await bench.start()
    await audit(bench, case)


async def _killed(bench: Bench, point: str, *bodies: str, **settings: str) -> None:
    """Let a worker die at `point` with these messages in its hands."""
    worker = await bench.start(crash_at=point, **settings)
    await bench.send(*bodies)
    assert await worker.exit_code() == -signal.SIGKILL, f"the worker never came to {point}"


def _at(point: str, scenario: Callable[[Bench, str], Awaitable[None]]) -> Scenario:
    async def play(bench: Bench) -> None:
        await scenario(bench, point)

    return play


_EFFECTS: Mapping[Callable[[Bench, str], Awaitable[None]], tuple[EffectName, ...]] = {
    success: OF_A_SUCCESS,
    build: OF_A_BUILD,
    job: ("resolve_job",),
    refusal: OF_A_REFUSAL,
    stop: ("stop_training_job",),
    takeover: ("claim_launch",),
    retry: ("write_retry",),
    second_attempt: ("create_training_job", "write_accepted"),
    cancelled_retry: ("write_given_up",),
    mirror: OF_A_MIRROR,
    unstarted: ("upload_item_file",),
}
CRASHES: Scenarios = {
    f"{scenario.__name__} {when} {effect}": ("sqlite", _at(f"{when}:{effect}", scenario))
    for scenario, effects in _EFFECTS.items()
    for effect in effects
    for when in ("before", "after")
}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def outcomes(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Outcomes:
    """What came of each crash that is asked for."""
    return await run_together(CRASHES, stack, tmp_path_factory, request.session)


@docker
@on_the_stack
@pytest.mark.timeout(400)
@pytest.mark.parametrize("crash", CRASHES)
async def test_crash(outcomes: Outcomes, crash: str) -> None:
    if (error := outcomes[crash]) is not None:
        raise error


@docker
@on_the_stack
@pytest.mark.parametrize("when", ["before", "after"])
async def test_crash_while_giving_a_duplicate_back(bench: Bench, when: str) -> None:
    """The launch is in leg 1 of another worker: the duplicate is to be hidden, and its worker dies doing that."""
    case = bench.launch(numbered(2), _wandb_api_key="5" * 40)
    bench.throttle(True)
    first = await bench.started(slots="1")
    await bench.send(case)
    await first.wait_for("submit_throttled")
    await _killed(bench, f"{when}:release_message", case.body)
    bench.throttle(False)
    await audit(bench, case)


def test_every_effect_is_split() -> None:
    split = {effect for effects in _EFFECTS.values() for effect in effects} | {"release_message"}
    assert split == set(get_args(EffectName))
