"""Code that can never become a job: input → outcome, stage, code. One worker, all side by side; it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.audit import ended, queue_empty
from tests.e2e.bad_code import LIMIT, LOGGED, PASSWORD, TABLE, Input, MakeLaunch, foreign_image
from tests.e2e.bench import Bench
from tests.e2e.code import SCRIPT, CodeBench, code_bench
from tests.e2e.conftest import Stack
from tests.e2e.launches import LaunchCase, numbered
from tests.fakes.git_server import make_repository, running_git_server
from worker.launch.record import LaunchRecord, LaunchState
from worker.local.stack import ENTITY
from worker.local.wandb_records import QueueItem

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]


@dataclass(frozen=True)
class Refused:
    """What became of one input."""

    case: LaunchCase
    item: QueueItem
    letter: Any
    record: LaunchRecord | None


@dataclass(frozen=True)
class Played:
    """What became of all of them, and of the good launch that came last."""

    code: CodeBench
    refused: Mapping[str, Refused]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def played(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    """All inputs at once to one worker, then a good one."""
    folder = tmp_path_factory.mktemp("code-refusals")
    async with (
        stack.bench(folder) as bench,
        running_git_server(_made(folder / "git")) as git,
        running_git_server(_made(folder / "private")) as private_git,
        code_bench(bench, LAUNCH_SOURCE_MAX_BYTES=str(LIMIT), GIT_SSL_CAINFO=str(folder / "ca.pem")) as code,
    ):
        trusted = [server.certificate.read_text() for server in (git, private_git)]
        (folder / "ca.pem").write_text("".join(trusted))
        private_git.login = f"ada:not-{PASSWORD}"
        for server in (git, private_git):
            make_repository(server.root / "train.git", {SCRIPT: "true\n"})
        given = Input(code, git, private_git, await foreign_image(code))
        sent: dict[str, tuple[LaunchCase, QueueItem]] = {}
        for make in TABLE:
            item = bench.services.wandb.push(ENTITY, "bad-code", {})
            sent[make.__name__] = code.launch(**await make(given), item_id=item.id), item
        if (
            bench.roles
        ):  # a bucket that does not exist is denied, too, to whom the policy names no bucket of that name
            bench.roles.values["SOURCE_BUCKET"] = "*"
        worker = await bench.start()
        await bench.send(*(case for case, _ in sent.values()))
        await _all_ended(bench, [case for case, _ in sent.values()])
        found = await bench.dead_letters(len(worker.events("launch_refused")))
        letters = {letter["MessageAttributes"]["launchId"]["StringValue"]: letter for letter in found}
        refused = {
            name: Refused(case, item, letters.get(case.launch_id), await bench.record(case))
            for name, (case, item) in sent.items()
        }
        yield Played(code, refused)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("make", TABLE, ids=lambda make: str(make.__name__))
async def test_bad_input_is_refused(played: Played, make: MakeLaunch) -> None:
    stage, code, part = TABLE[make]
    refused = played.refused[make.__name__]
    record, item = refused.record, refused.item
    assert record is not None
    assert record.failure is not None
    assert (record.state, record.reported) == (LaunchState.REFUSED, True)
    assert (record.failure.stage, record.failure.code) == (stage, code), record.failure.reason
    assert part in record.failure.reason
    attributes = {name: value["StringValue"] for name, value in refused.letter["MessageAttributes"].items()}
    assert attributes == {
        "reason": record.failure.reason,
        "stage": stage,
        "code": code,
        "launchId": refused.case.launch_id,
    }
    assert item.error is not None
    assert (item.state, item.error["stage"]) == ("FAILED", stage)
    assert part in item.error["message"]
    for text in (refused.letter["Body"], json.dumps(attributes), repr(record), json.dumps(item.error)):
        assert PASSWORD not in text
    assert played.code.bench.jobs(refused.case) == []


@pytest.mark.parametrize("make", LOGGED, ids=lambda make: str(make.__name__))
async def test_failed_builds_show_their_log(played: Played, make: MakeLaunch) -> None:
    refused = played.refused[make.__name__]
    run = played.code.bench.companion(refused.case)
    assert run is not None
    assert (run.state, run.console()) == ("failed", [])
    assert TABLE[make][2] in "\n".join(played.code.build_log(refused.case))


async def test_worker_goes_on(played: Played) -> None:
    """Nothing is left of what was refused, no secret was printed, and the next launch succeeds."""
    code = played.code
    assert code.pushed() == []
    await code.nothing_left()
    (worker,) = code.bench.workers
    assert PASSWORD not in worker.printed()
    case = code.launch(await code.upload(code.script(lines := numbered(2))), lines)
    await code.bench.send(case)
    await code.audit(case)
    assert worker.alive


async def _all_ended(bench: Bench, cases: Sequence[LaunchCase]) -> None:
    """Wait until nothing is open any more, but not for ever: the tests say what is missing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            for case in cases:
                await ended(bench, case)
            await queue_empty(bench)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
