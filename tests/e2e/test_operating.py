"""`jobs`, `workers`, `logs`, `stop` and `retry` beside a worker that runs, as somebody else would call them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.audit import audit, ended, queue_empty
from tests.e2e.bench import FAST, Bench
from tests.e2e.launches import numbered
from tests.e2e.process import until
from worker.launch.record import LaunchState
from worker.ledger.opening import open_ledger
from worker.ledger.port import StopRequest

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


async def command(bench: Bench, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of `launch-worker ARGUMENTS`."""
    environment = {
        **bench.services.environment,
        **bench.credentials(*arguments),
        **FAST,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1,localhost",
        "LAUNCH_DEPLOYMENT": bench.deployment,
        "LAUNCH_QUEUE_URL": bench.queue_url,
        "LAUNCH_LEDGER": bench.ledger,
        "COLUMNS": "200",
        "LOGNAME": "anna",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", *arguments),
        cwd=bench.folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def answer(bench: Bench, *arguments: str) -> Any:
    code, out, err = await command(bench, *arguments, "--json")
    assert code == 0, out + err
    return json.loads(out)


async def test_see_ask_and_stop(shared_bench: Bench) -> None:
    bench = shared_bench
    worker = await bench.started()
    case = bench.launch(numbered(3), hosts=2, tail=r"printf '10%%\r100%%\n'; sleep 600", max_runtime=900)
    await bench.send(case)
    await bench.lines_in_wandb(case, 8)

    (row,) = await answer(bench, "jobs")
    assert (row["launchId"], row["job"], row["state"]) == (case.launch_id, case.job_name, "accepted")
    assert (row["instanceCount"], row["lines"], row["waitsFor"]) == (2, 8, "")
    assert await answer(bench, "jobs", "--state", "waiting") == []
    _, table, _ = await command(bench, "jobs")
    assert case.launch_id[:10] in table
    assert "accepted" in table

    (beat,) = await answer(bench, "workers")
    assert (beat["worker"], beat["alive"], beat["launches"]) == (row["worker"], True, 1)

    _, out, _ = await command(bench, "logs", case.run_id)
    assert sorted(line.split(" ", 1)[1] for line in out.splitlines()) == sorted(
        f"{host} {line.format(host=host)}" for host in ("algo-1", "algo-2") for line in [*numbered(3), "100%"]
    )
    _, out, _ = await command(bench, "logs", case.launch_id[:8], "--host", "algo-2", "--since", "1h")
    assert {line.split(" ")[1] for line in out.splitlines()} == {"algo-2"}
    code, _, err = await command(bench, "logs", "nobody")
    assert (code, "no launch" in err) == (1, True)

    following = asyncio.ensure_future(command(bench, "logs", case.launch_id, "--follow"))
    stopping = await answer(bench, "stop", case.job_name, "--reason", "wrong data")
    assert stopping["byOwner"] is True
    await worker.wait_for("job_finished", launch_id=case.launch_id)
    code, out, err = await following
    assert code == 0
    assert len(out.splitlines()) == 8
    assert "anna stopped it with launch-worker stop: wrong data." in err
    (row,) = await answer(bench, "jobs", "--all")
    assert row["state"] == "finished"
    assert ("stopped by this worker" in row["end"], row["waitsFor"]) == (True, "")
    assert await answer(bench, "jobs") == []
    code, out, err = await command(bench, "stop", case.launch_id)
    assert (code, out, err.split(":")[0]) == (1, "", "LW-ALREADY-OVER")
    assert "is over already: " in err


async def test_a_failed_launch_is_sent_again_as_the_same_launch(bench: Bench) -> None:
    worker = await bench.started()
    once = '[ "$WANDB_RESUME" ] || { sleep 0.3; exit 3; }'
    case = bench.launch(numbered(2), tail=once, _wandb_api_key="5" * 40)
    await bench.send(case)
    await audit(bench, case, end="failed", exit_code=3)
    await worker.freeze()  # else the second attempt may be over before it is asked for a third
    sent = await answer(bench, "retry", case.run_id)
    assert (sent["launchId"], sent["attempt"], sent["messageId"]) == (case.launch_id, 2, "")
    assert "exit code: 3" in sent["note"]
    code, _, err = await command(bench, "retry", case.launch_id)
    assert (code, err.split(":")[0]) == (1, "LW-CANNOT-RETRY")
    assert "is not over" in err
    worker.wake()
    twice = replace(case, printed=[*case.printed] * 2)
    (record,) = await audit(bench, twice, attempts=2)
    assert [past.kind for past in record.attempts] == ["by hand"]
    second = await bench.clients.sagemaker.describe_training_job(TrainingJobName=sent["job"])
    assert second["Environment"]["WANDB_API_KEY"] == "5" * 40, "the key that the launch brought"
    code, _, err = await command(bench, "retry", case.launch_id)
    assert code == 1
    assert "has completed; to train once more send its message with another launchId" in err


async def test_a_stopped_launch_is_sent_again_and_not_stopped_again(bench: Bench) -> None:
    """Stopped in W&B, which goes on to say so of the companion; a note of `stop` is left in the ledger as well."""
    worker = await bench.started()
    case = bench.launch(numbered(1), tail='[ "$WANDB_RESUME" ] || sleep 600', max_runtime=900)
    await bench.send(case)
    await bench.lines_in_wandb(case, 1)
    bench.press_stop(case)
    await worker.wait_for("job_finished", launch_id=case.launch_id)
    async with open_ledger(bench.ledger, bench.clients.dynamodb) as ledger:
        await ledger.ask_stop(StopRequest(case.launch_id, "too late", 1.0))
    code, out, err = await command(bench, "retry", case.launch_id[:12])
    assert (code, err) == (0, "")
    assert out.startswith(
        f"attempt 2 of launch {case.launch_id} as training job {case.job_name}-r2: it waits"
    )
    await audit(bench, replace(case, printed=[*case.printed] * 2), attempts=2)


async def test_a_refused_launch_is_sent_again_with_its_letter_or_its_message(bench: Bench) -> None:
    strict = await bench.started(allowed_instance_types="ml.m5.*")
    kept, lost = (bench.launch(numbered(1), instance_type="ml.c5.large") for _ in range(2))
    await bench.send(lost)
    await strict.wait_for("launch_refused", launch_id=lost.launch_id)
    await bench.dead_letters(1)  # taken off by somebody
    await bench.send(kept)
    await strict.wait_for("launch_refused", launch_id=kept.launch_id)
    await queue_empty(bench)
    strict.terminate()
    assert await strict.exit_code() == 0
    sent = await answer(bench, "retry", kept.launch_id)
    assert sent["attempt"] == 2
    assert sent["messageId"]
    code, _, err = await command(bench, "retry", lost.launch_id)
    assert (code, err.split(":")[0]) == (1, "LW-CANNOT-RETRY")
    assert "give it with --message FILE" in err
    (bench.folder / "message.json").write_text(lost.body)
    await answer(bench, "retry", lost.launch_id, "--message", "message.json")
    await bench.started()
    await ended(bench, kept, lost)
    for case in (kept, lost):
        record = await bench.record(case)
        assert record is not None
        assert (record.state, record.attempt) == (LaunchState.FINISHED, 2)
        assert bench.jobs(case) == [f"{case.job_name}-r2"]


async def test_without_a_living_worker_the_job_is_stopped_all_the_same_and_the_reason_is_kept(
    bench: Bench,
) -> None:
    worker = await bench.started()
    case = bench.launch(numbered(1), tail="sleep 600", max_runtime=900)
    await bench.send(case)
    await bench.lines_in_wandb(case, 1)
    await worker.kill()
    stopping = await answer(bench, "stop", case.launch_id, "--reason", "nobody is there")
    assert stopping["byOwner"] is False
    (beat,) = await answer(bench, "workers")
    assert (beat["alive"], beat["launches"]) == (False, 1)
    other = await bench.started()
    await other.wait_for("job_finished", launch_id=case.launch_id)

    async def over() -> bool:
        record = await bench.record(case)
        return record is not None and record.state is LaunchState.FINISHED

    await until(over, "the launch is finished")
    assert case.job_name in [row["job"] for row in await answer(bench, "jobs", "--state", "Stopped")]
