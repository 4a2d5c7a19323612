"""What must hold of every launch at its end, whatever happened on the way."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime

from tests.e2e.bench import Bench
from tests.e2e.launches import LaunchCase
from tests.e2e.process import until
from worker.launch.record import LaunchRecord, LaunchState
from worker.local.logs import TRAINING_JOBS_GROUP
from worker.tracking.build_log import NAME as BUILD_LOG

Line = tuple[str, str]
"""(time as in W&B's console, content)."""


async def ended(bench: Bench, *cases: LaunchCase) -> None:
    """Wait until the ledger has the launches finished or refused."""
    for case in cases:

        async def look(case: LaunchCase = case) -> bool:
            record = await bench.record(case)
            return record is not None and not record.state.is_open

        await until(look, f"end of launch {case.run_id}")


async def audit(
    bench: Bench,
    *cases: LaunchCase,
    end: str = "completed",
    reason: str = "",
    exit_code: int = 0,
    attempts: int = 1,
) -> list[LaunchRecord]:
    """Wait for the end of the launches, then hold each to the whole promise; returns their records.

    `attempts`: training jobs of each launch; `printed` of a case is what all of them printed."""
    await ended(bench, *cases)
    records = [
        await _audit_one(bench, case, end=end, reason=reason, exit_code=exit_code, attempts=attempts)
        for case in cases
    ]
    await queue_empty(bench)
    await no_container_left(bench, *cases)
    return records


async def queue_empty(bench: Bench) -> None:
    """No message is left, neither visible nor in flight."""

    async def look() -> bool:
        return await bench.depth() == (0, 0)

    await until(look, "the queue is empty")


async def no_container_left(bench: Bench, *cases: LaunchCase) -> None:
    """All containers of these launches are removed."""
    docker = bench.services.docker
    assert docker is not None
    ours = f"launch-worker.local={socket.gethostname()}/{os.getpid()}"
    for case in cases:
        labels = json.dumps({"label": [ours, f"launch-worker.local.job={case.job_name}"]})

        async def look(labels: str = labels) -> bool:
            return not await docker.containers.list(all=True, filters=labels)

        await until(look, f"no container of {case.job_name} is left")


async def _audit_one(
    bench: Bench, case: LaunchCase, *, end: str, reason: str, exit_code: int, attempts: int
) -> LaunchRecord:
    further = [f"{case.job_name}-r{number}" for number in range(2, attempts + 1)]
    assert bench.jobs(case) == [case.job_name, *further], "an attempt is exactly one training job"
    record = await bench.record(case)
    assert record is not None
    assert record.state is LaunchState.FINISHED, record.failure
    run = bench.companion(case)
    assert run is not None
    told = ("finished" if exit_code == 0 else "failed", exit_code)
    assert (run.state, run.exit_code) == told, f"its last posts: {run.posts[-4:]}"
    assert run.summary["sagemaker/end"] == end
    assert reason in run.summary["sagemaker/reason"]
    await _audit_console(bench, case)
    assert run.summary["launch/log_lines"] == record.log.next_line == len(run.console())
    return record


async def _audit_console(bench: Bench, case: LaunchCase) -> None:
    """Each line of each container once, in its order, with CloudWatch's own time, and nothing else."""
    run = bench.companion(case)
    assert run is not None
    assert run.overwrites == [], "a line was posted over a different one"
    assert run.refused == [], "a strict W&B would have had to refuse it"
    assert run.holes() == {}
    assert set(run.lines) <= {""}, "one writer at a time, a plain one"
    in_wandb: dict[str, list[Line]] = {}
    for text in run.console():
        line = json.loads(text)
        in_wandb.setdefault(line["label"], []).append((line["ts"], line["content"]))
    assert in_wandb == await in_cloudwatch(bench, case)
    hosts = [f"algo-{number + 1}" for number in range(case.hosts)] if case.printed else []
    expected = {host: [line.replace("{host}", host) for line in case.printed] for host in hosts}
    assert {host: [content for _, content in lines] for host, lines in in_wandb.items()} == expected
    _audit_files(run.files, in_wandb)


def _audit_files(files: dict[str, bytes], lines: dict[str, list[Line]]) -> None:
    """The full record has as many lines a host as the console."""
    logs = {
        name: content for name, content in files.items() if name.startswith("logs/") and name != BUILD_LOG
    }
    assert {name.split("/")[-2] for name in logs} == set(lines)
    for host, expected in lines.items():
        content = b"".join(text for name, text in sorted(logs.items()) if name.split("/")[-2] == host)
        assert len(content.decode().split("\n")) - 1 == len(expected)


async def in_cloudwatch(bench: Bench, case: LaunchCase) -> dict[str, list[Line]]:
    """Host → the lines that CloudWatch has, by GetLogEvents, which the worker does not use."""
    logs = bench.clients.logs
    lines: dict[str, list[Line]] = {}
    groups = await logs.describe_log_groups(logGroupNamePrefix=TRAINING_JOBS_GROUP)
    if not groups["logGroups"]:
        return lines
    for stream in await bench.streams(case):
        answer = await logs.get_log_events(
            logGroupName=TRAINING_JOBS_GROUP, logStreamName=stream, startFromHead=True, limit=10_000
        )
        host = stream.rpartition("/")[2].rpartition("-")[0]
        lines.setdefault(host, []).extend(
            (_console_time(event["timestamp"]), _last_state(event["message"])) for event in answer["events"]
        )
    return lines


def _console_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def _last_state(message: str) -> str:
    """A progress bar as it looks in the end."""
    return message.rstrip("\r").split("\r")[-1]
