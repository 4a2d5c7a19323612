"""`jobs`, `workers`, `logs` and `stop` beside a worker that runs, as somebody else would call them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import pytest

from tests.e2e.bench import FAST, Bench
from tests.e2e.launches import numbered
from tests.e2e.process import until
from worker.launch.record import LaunchState

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
    assert "stopped by this worker" in row["waitsFor"]
    assert await answer(bench, "jobs") == []
    code, out, _ = await command(bench, "stop", case.launch_id)
    assert (code, "it is over already" in out) == (1, True)


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
