"""The local CloudWatch Logs: FilterLogEvents as AWS answers it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from worker.local.aws import running_aws
from worker.local.logs import TRAINING_JOBS_GROUP, TrainingJobLogs, aws_like_logs

if TYPE_CHECKING:
    from types_aiobotocore_logs import CloudWatchLogsClient

NOW = int(time.time() * 1000)


@pytest.fixture
async def logs() -> AsyncIterator[CloudWatchLogsClient]:
    async with contextlib.AsyncExitStack() as stack:
        aws = await stack.enter_async_context(running_aws())
        stack.enter_context(aws_like_logs())
        yield await stack.enter_async_context(aws.session().client("logs", endpoint_url=aws.endpoint))


async def _messages(logs: CloudWatchLogsClient, *streams: str, **more: Any) -> list[str]:
    answer = await logs.filter_log_events(
        logGroupName=TRAINING_JOBS_GROUP, logStreamNames=list(streams), **more
    )
    return [event["message"] for event in answer["events"]]


async def _refusal(logs: CloudWatchLogsClient, **request: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as error:
        await logs.filter_log_events(**request)
    details = error.value.response["Error"]
    return details["Code"], details["Message"]


async def test_missing_group_and_missing_stream_fail_the_whole_call(logs: CloudWatchLogsClient) -> None:
    wanted = {"logGroupName": TRAINING_JOBS_GROUP, "logStreamNames": ["j/algo-1-1", "j/algo-2-1"]}
    assert await _refusal(logs, **wanted) == (
        "ResourceNotFoundException",
        "The specified log group does not exist.",
    )
    TrainingJobLogs().put("j/algo-1-1", [(NOW, "x")])
    assert await _refusal(logs, **wanted) == (
        "ResourceNotFoundException",
        "The specified log stream does not exist.",
    )


async def test_at_most_100_names_and_no_prefix_beside_them(logs: CloudWatchLogsClient) -> None:
    writer = TrainingJobLogs()
    names = [f"j/algo-{n}-1" for n in range(101)]
    for name in names:
        writer.put(name, [(NOW, name)])
    assert len(await _messages(logs, *names[:100])) == 100
    group: dict[str, Any] = {"logGroupName": TRAINING_JOBS_GROUP}
    assert (await _refusal(logs, **group, logStreamNames=names))[0] == "InvalidParameterException"
    both = {"logStreamNames": names[:1], "logStreamNamePrefix": "j/"}
    assert (await _refusal(logs, **group, **both))[0] == "InvalidParameterException"
    answer = await logs.filter_log_events(**group, logStreamNamePrefix="j/algo-10")
    assert [event["logStreamName"] for event in answer["events"]] == ["j/algo-10-1", "j/algo-100-1"]


async def test_order_is_time_over_all_streams_and_late_events_take_their_place(
    logs: CloudWatchLogsClient,
) -> None:
    writer = TrainingJobLogs()
    writer.put("a/1", [(NOW, "1"), (NOW + 20, "3")])
    writer.put("b/1", [(NOW + 10, "2"), (NOW + 30, "4")])
    assert await _messages(logs, "b/1", "a/1") == ["1", "2", "3", "4"]
    writer.put("a/1", [(NOW + 5, "late")])
    assert await _messages(logs, "a/1") == ["1", "late", "3"]
    assert await _messages(logs, "a/1", startTime=NOW + 5, endTime=NOW + 20) == ["late", "3"]
    assert await _messages(logs, "a/1", startTime=NOW + 6, endTime=NOW + 19) == []


async def test_pages_hold_each_event_once_even_when_late_ones_come_between(
    logs: CloudWatchLogsClient,
) -> None:
    writer = TrainingJobLogs()
    writer.put("a/1", [(NOW + n // 3, str(n)) for n in range(10)])
    seen: list[str] = []
    more: dict[str, Any] = {}
    while True:
        answer = await logs.filter_log_events(
            logGroupName=TRAINING_JOBS_GROUP, logStreamNames=["a/1"], limit=3, **more
        )
        seen += [event["message"] for event in answer["events"]]
        writer.put("a/1", [(NOW - 1000, "too late for the next pages")])
        if "nextToken" not in answer:
            break
        more = {"nextToken": answer["nextToken"]}
    assert seen == [str(n) for n in range(10)]


async def test_pages_end_at_one_megabyte(logs: CloudWatchLogsClient) -> None:
    TrainingJobLogs().put("a/1", [(NOW + n, "x" * 400_000) for n in range(5)])
    answer = await logs.filter_log_events(logGroupName=TRAINING_JOBS_GROUP, logStreamNames=["a/1"])
    assert len(answer["events"]) == 2
    assert answer["nextToken"]


async def test_bad_token_is_refused(logs: CloudWatchLogsClient) -> None:
    TrainingJobLogs().put("a/1", [(NOW, "x")])
    group = {"logGroupName": TRAINING_JOBS_GROUP}
    assert (await _refusal(logs, **group, nextToken="nonsense"))[0] == "InvalidParameterException"
