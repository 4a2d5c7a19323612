"""Pages of FilterLogEvents skip botocore's second reading, and come out as with it."""

from __future__ import annotations

from typing import Any

import aioboto3
import pytest
from aiohttp import web

from tests.fakes.aws_server import AwsServer
from worker.clients.aws import AwsClients

ASK: Any = {"logGroupName": "group", "logStreamNames": ["a", "b"]}
PAGE = {
    "events": [
        {"logStreamName": "a", "timestamp": 5, "message": "één", "ingestionTime": 7, "eventId": "1"},
        {"logStreamName": "b", "timestamp": 6, "ingestionTime": 8, "eventId": "2"},
    ],
    "searchedLogStreams": [{"logStreamName": "a", "searchedCompletely": True}],
    "nextToken": "more",
}


async def usual_answer(url: str) -> Any:
    """What botocore makes of it by itself."""
    session = aioboto3.Session(region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    async with session.client("logs", endpoint_url=url) as logs:
        return await logs.filter_log_events(**ASK)


@pytest.mark.parametrize(
    "page", [PAGE, {"events": [], "searchedLogStreams": []}, {"nextToken": "only"}, {"events": None}]
)
async def test_a_page_is_what_botocore_would_make_of_it(
    aws: AwsClients, aws_server: AwsServer, page: dict[str, Any]
) -> None:
    aws_server.answers["FilterLogEvents"] = lambda _: page
    ours: Any = await aws.logs.filter_log_events(**ASK)
    usual = await usual_answer(aws_server.url)
    for answer in (ours, usual):
        del answer["ResponseMetadata"]
    assert ours == usual


@pytest.mark.parametrize("body", ["", "no JSON"])
async def test_what_is_no_page_is_left_to_botocore(aws: AwsClients, aws_server: AwsServer, body: str) -> None:
    aws_server.fail_next("FilterLogEvents", web.Response(text=body), web.Response(text=body))
    ours: Any = await aws.logs.filter_log_events(**ASK)
    usual = await usual_answer(aws_server.url)
    for answer in (ours, usual):
        del answer["ResponseMetadata"]
    assert ours == usual
