"""One worker, no trouble: every way in which a job can end, told truthfully, with its whole log.

All launches are in work at once; each is a test of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from tests.e2e.audit import audit
from tests.e2e.conftest import Stack
from tests.e2e.harness import Bench, LaunchCase, numbered, open_bench

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

_FAILS = "printf 'layer 7: out of memory' > /opt/ml/output/failure; exit 3"
_MANY = 6000
"""Lines in one go: more than one batch takes."""


@dataclass(frozen=True)
class Running:
    """The worker and what it was sent."""

    bench: Bench
    cases: Mapping[str, LaunchCase]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def running(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("endings")
    async with open_bench(stack.services, stack.clients, stack.image, folder) as bench:
        await bench.started()
        missing = f"{bench.image.partition('@')[0]}@sha256:{'0' * 64}"
        burst = bench.launch(tail=f"seq 1 {_MANY}")
        cases = {
            "exit 3": bench.launch(numbered(3), tail=_FAILS),
            "stopped from outside": bench.launch(numbered(2), tail="sleep 60"),
            "stopped in W&B": bench.launch(numbered(2), tail="sleep 60"),
            "time limit": bench.launch(numbered(2), tail="sleep 60", max_runtime=2),
            "two instances": bench.launch(numbered(6), hosts=2),
            "one of two fails": bench.launch(
                numbered(2), hosts=2, tail='[ "$SM_CURRENT_HOST" = algo-2 ] && exit 5; sleep 60'
            ),
            "silent": bench.launch(),
            "burst": replace(burst, printed=[str(number) for number in range(1, _MANY + 1)]),
            "unknown image": bench.launch(image=missing),
        }
        await bench.send(*cases.values())
        yield Running(bench, cases)


async def test_success_with_all_kinds_of_lines(bench: Bench) -> None:
    worker = await bench.started()
    lines = ["plain", "Grüße, 世界 🚀", "  indented \t tab", '{"json": "line", "ts": 1}', *numbered(5)]
    case = bench.launch(lines, pause=0.2, tail=r"echo; printf '10%%\r50%%\r100%%\n'; echo to stderr >&2")
    await bench.send(case)
    await worker.wait_for("job_finished", end="completed", launch_id=case.launch_id)
    # CloudWatch takes no empty message: SageMaker's agent writes a blank. A progress bar shows its last state.
    expected = replace(case, printed=[*lines, " ", "100%", "to stderr"])
    (record,) = await audit(bench, expected, reason="completed")
    assert record.message == "", "the ledger keeps the message only until SageMaker has the job"
    assert record.request is None


async def test_failure_with_its_reason(running: Running) -> None:
    case = running.cases["exit 3"]
    reason = "AlgorithmError: layer 7: out of memory, exit code: 3"
    await audit(running.bench, case, end="failed", reason=reason, exit_code=3)
    run = running.bench.companion(case)
    assert run is not None
    assert run.summary["sagemaker/failure_reason"] == reason


async def test_stop_by_somebody_else(running: Running) -> None:
    bench, case = running.bench, running.cases["stopped from outside"]
    await bench.lines_in_wandb(case, 2)
    await bench.clients.sagemaker.stop_training_job(TrainingJobName=case.job_name)
    await audit(bench, case, end="stopped from outside", exit_code=1)


async def test_stop_pressed_in_wandb(running: Running) -> None:
    bench, case = running.bench, running.cases["stopped in W&B"]
    await bench.lines_in_wandb(case, 2)
    bench.press_stop(case)
    await audit(bench, case, end="stopped by this worker", reason="Stop was pressed in W&B", exit_code=1)


async def test_time_limit(running: Running) -> None:
    case = running.cases["time limit"]
    await audit(running.bench, case, end="stopped by its time limit", reason="MaxRuntime", exit_code=1)


async def test_two_instances(running: Running) -> None:
    await audit(running.bench, running.cases["two instances"])


async def test_one_of_two_instances_fails(running: Running) -> None:
    await audit(
        running.bench,
        running.cases["one of two fails"],
        end="failed",
        reason="exit code: 5",
        exit_code=5,
    )


async def test_no_output_at_all(running: Running) -> None:
    await audit(running.bench, running.cases["silent"])


async def test_more_lines_than_one_batch(running: Running) -> None:
    case = running.cases["burst"]
    (record,) = await audit(running.bench, case)
    assert record.log.next_line == _MANY


async def test_unknown_image(running: Running) -> None:
    case = running.cases["unknown image"]
    await audit(running.bench, case, end="failed", reason="ClientError", exit_code=1)


async def test_ten_launches_at_once(bench: Bench) -> None:
    cases = [bench.launch(numbered(4), pause=0.2) for _ in range(10)]
    await bench.send(*cases)
    worker = await bench.started()
    await audit(bench, *cases)
    assert len(worker.events("job_finished")) == 10
    assert len({case.job_name for case in cases}) == 10
