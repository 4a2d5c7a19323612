"""`launch-worker logs` against the local CloudWatch Logs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.records import record
from worker.cli import app
from worker.ledger.sqlite import open_sqlite_ledger
from worker.local.aws import running_aws
from worker.local.logs import TrainingJobLogs, aws_like_logs


async def test_a_host_that_has_no_log_is_told_and_which_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with running_aws() as aws, open_sqlite_ledger(tmp_path / "ledger.db") as ledger:
        monkeypatch.setenv("LAUNCH_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_REGION", aws.region)
        await ledger.create(record(accepted_at=1.0))
        with aws_like_logs():
            for host in ("algo-1", "algo-2"):
                TrainingJobLogs().put(
                    f"job-1/{host}-1700000000", [(int(time.time() * 1000) - 60_000, f"I am {host}")]
                )
            told = {
                host: await asyncio.to_thread(CliRunner().invoke, app, ["logs", "job-1", "--host", host])
                for host in ("algo-2", "algo-3")
            }
    assert told["algo-2"].exit_code == 0, told["algo-2"].output
    assert told["algo-2"].stdout.endswith("Z algo-2 I am algo-2\n")
    assert (told["algo-3"].exit_code, told["algo-3"].stdout) == (2, "")
    assert told["algo-3"].stderr.startswith("LW-USAGE: --host: ")
    assert "there are algo-1, algo-2" in told["algo-3"].stderr
