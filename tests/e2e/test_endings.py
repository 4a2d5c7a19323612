"""One worker, no trouble: every way in which a job can end, told truthfully, with its whole log.

All launches are in work at once; each is a test of its own.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from tests.e2e.audit import audit, ended, in_cloudwatch
from tests.e2e.bench import Bench
from tests.e2e.conftest import Stack
from tests.e2e.launches import PROJECT, LaunchCase, numbered
from worker.local.logs import TrainingJobLogs
from worker.local.stack import ENTITY
from worker.local.wandb_records import DoubleRun

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
    async with stack.bench(folder) as bench:
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
            "to files": bench.launch(numbered(3), log_target="files"),
            "to nowhere": bench.launch(numbered(3), log_target="off"),
            "to the run": bench.launch(numbered(3), log_target="run"),
            "unknown image": bench.launch(image=missing),
        }
        await bench.send(*cases.values())
        yield Running(bench, cases)


async def test_success_with_all_kinds_of_lines(bench: Bench) -> None:
    worker = await bench.started()
    lines = ["plain", "Grüße, 世界 🚀", "  indented \t tab", '{"json": "line", "ts": 1}', *numbered(5)]
    case = bench.launch(
        lines, pause=0.2, tail=r"echo; printf '10%%\r50%%\r100%%\n'; sleep 0.2; echo to stderr >&2"
    )
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


async def test_log_to_files_alone(running: Running) -> None:
    case = running.cases["to files"]
    await ended(running.bench, case)
    run = running.bench.services.wandb.run(ENTITY, PROJECT, case.run_id)
    assert run is not None
    assert (run.console(), run.summary, run.state) == ([], {}, "finished")
    assert running.bench.companion(case) is None
    (content,) = run.files.values()
    assert [line.partition(" ")[2] for line in content.decode().splitlines()] == [
        f"step {number} on algo-1" for number in range(3)
    ]


async def test_log_to_nowhere(running: Running) -> None:
    run = await _companion_at_the_end(running, "to nowhere")
    assert (run.console(), run.files) == ([], {})


async def test_log_to_the_run_itself(running: Running) -> None:
    case = running.cases["to the run"]
    await ended(running.bench, case)
    run = running.bench.services.wandb.run(ENTITY, PROJECT, case.run_id)
    assert run is not None
    assert (run.state, run.exit_code, run.overwrites) == ("finished", 0, [])
    assert run.console_text() == [f"step {number} on algo-1" for number in range(3)]
    assert running.bench.companion(case) is None


async def _companion_at_the_end(running: Running, name: str) -> DoubleRun:
    case = running.cases[name]
    await ended(running.bench, case)
    run = running.bench.companion(case)
    assert run is not None
    assert (run.state, run.summary["sagemaker/end"]) == ("finished", "completed")
    return run


async def test_late_lines_and_a_restarted_host(bench: Bench) -> None:
    """Events that CloudWatch takes in behind the position, and a host's second stream, come once, at the end."""
    case = bench.launch(numbered(3), tail="sleep 1.5")
    await bench.send(case)
    worker = await bench.started()
    await bench.lines_in_wandb(case, 3)
    logs, now = TrainingJobLogs(), int(time.time() * 1000)
    (stream,) = await bench.streams(case)
    logs.put(stream, [(now - 60_000, "very late"), (now - 500, "late")])
    logs.put(f"{case.job_name}/algo-1-{now // 1000 + 10}", [(now, "restarted"), (now, "restarted")])
    await worker.wait_for("job_finished", launch_id=case.launch_id)
    run = bench.companion(case)
    assert run is not None
    assert (run.overwrites, run.holes()) == ([], {})
    first = [f"step {number} on algo-1" for number in range(3)]
    assert run.console_text()[:3] == first
    assert sorted(run.console_text()[3:]) == ["late", "restarted", "restarted", "very late"]
    in_wandb = sorted((line["ts"], line["content"]) for line in map(json.loads, run.console()))
    assert in_wandb == sorted((await in_cloudwatch(bench, case))["algo-1"])


async def test_no_more_jobs_than_allowed(bench: Bench) -> None:
    cases = [bench.launch(numbered(2), pause=0.1) for _ in range(3)]
    await bench.send(*cases)
    await bench.started(max_jobs="1")
    records = await audit(bench, *cases)
    spans = sorted((record.facts.created_at or 0, record.facts.ended_at or 0) for record in records)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


async def test_ten_launches_at_once(bench: Bench) -> None:
    cases = [bench.launch(numbered(4), pause=0.2) for _ in range(10)]
    await bench.send(*cases)
    worker = await bench.started()
    await audit(bench, *cases)
    assert len(worker.events("job_finished")) == 10
    assert len({case.job_name for case in cases}) == 10
