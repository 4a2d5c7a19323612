"""What `launch-worker doctor` tells where there is nothing yet: neither settings nor AWS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli import app

NOTHING = {"WANDB_MODE": "offline", "LAUNCH_BUILDER": "none", "AWS_CONFIG_FILE": "/nowhere"}


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "LAUNCH_QUEUE_URL"):
        monkeypatch.delenv(name, raising=False)


def doctor(*arguments: str, **environ: str) -> list[dict[str, str]]:
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments], env={**NOTHING, **environ})
    assert result.exit_code == 1, result.output
    found: list[dict[str, str]] = json.loads(result.stdout)
    return found


def test_what_is_required_is_told_first_and_nobody_is_said_to_have_refused() -> None:
    found = doctor()
    assert [check["name"] for check in found[:3]] == ["settings", "queue", "region"]
    assert [check["detail"] for check in found if check["name"] == "queue"] == ["LAUNCH_QUEUE_URL: not set"]
    rest = {check["name"]: check["detail"] for check in found[3:]}
    for name in ("ledger", "registry", "IAM", "log group"):
        assert rest[name] == "not looked at: AWS_REGION: no Region is set"


def test_a_queue_that_is_set_is_not_looked_at_either() -> None:
    found = doctor(LAUNCH_QUEUE_URL="https://sqs.us-east-1.amazonaws.com/123456789012/launches")
    assert [(check["verdict"], check["detail"]) for check in found if check["name"] == "queue"] == [
        ("skipped", "not looked at: AWS_REGION: no Region is set")
    ]


def test_a_message_that_is_no_text_is_told_without_aws_too(tmp_path: Path) -> None:
    (tmp_path / "bin.json").write_bytes(b"\xff")
    (told,) = [check for check in doctor("--message", "bin.json") if check["name"] == "message"]
    assert (told["verdict"], told["remedy"]) == ("failed", "save the file as UTF-8")
