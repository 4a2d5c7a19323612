"""The status feed on the wire: every page, a little overlap, and no change lost to a failed look."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.aws_server import AwsError, AwsServer, quick_rates
from worker.clients.aws import AwsClients, AwsRefused
from worker.errors import Throttled, Unreachable
from worker.training.status_feed import StatusFeed
from worker.training.status_news import Summary

T = 1_700_000_000.0


def summary(name: str, modified: float | None, status: str = "InProgress", **more: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "TrainingJobName": name,
        "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}",
        "CreationTime": T - 100,
        "TrainingJobStatus": status,
        **more,
    }
    return value if modified is None else {**value, "LastModifiedTime": modified}


class Jobs:
    """ListTrainingJobs: pages as given, whatever is asked."""

    def __init__(self, server: AwsServer, *pages: list[dict[str, Any]]) -> None:
        self.pages = pages
        server.answers["ListTrainingJobs"] = self.answer

    def answer(self, parameters: dict[str, Any]) -> dict[str, Any]:
        number = int(parameters.get("NextToken", 0))
        answer: dict[str, Any] = {"TrainingJobSummaries": self.pages[number]}
        return answer if number + 1 == len(self.pages) else {**answer, "NextToken": str(number + 1)}


def asked_since(server: AwsServer) -> list[float]:
    """`LastModifiedTimeAfter` of each call."""
    return [request["LastModifiedTimeAfter"] for request in server.requests("ListTrainingJobs")]


def tokens(server: AwsServer) -> list[str | None]:
    """`NextToken` of each call."""
    return [request.get("NextToken") for request in server.requests("ListTrainingJobs")]


class Clock:
    """AWS's time; long ago, so that only what SageMaker tells moves the feed, until a test sets it."""

    def __init__(self) -> None:
        self.time = 0.0
        self.gone_by = 0.0
        """By this host's clock, while calls are under way; only where a test asks for it."""

    def monotonic(self) -> float:
        return self.gone_by

    def now(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits half a minute for another try here."""
    monkeypatch.setattr("worker.training.status_feed.backoff", lambda *_, **__: 0.002)


@pytest.fixture
def feed(aws: AwsClients, clock: Clock) -> StatusFeed:
    return StatusFeed(aws.sagemaker, quick_rates(), since=T, now=clock.now)


async def test_every_page_is_read_also_behind_an_empty_one(feed: StatusFeed, aws_server: AwsServer) -> None:
    Jobs(
        aws_server,
        [summary("a", T + 1)],
        [],
        [summary("b", T + 2, "Completed", SecondaryStatus="Completed"), summary("c", None)],
    )
    assert await feed.changes() == {
        "a": Summary("a", "InProgress", "", T + 1),
        "b": Summary("b", "Completed", "Completed", T + 2),
        "c": Summary("c", "InProgress", "", T - 100),
    }
    assert len(aws_server.requests("ListTrainingJobs")) == 3
    assert {request["MaxResults"] for request in aws_server.requests("ListTrainingJobs")} == {100}


async def test_each_look_overlaps_the_one_before_and_only_awss_own_clock_moves_it(
    feed: StatusFeed, aws_server: AwsServer
) -> None:
    jobs = Jobs(aws_server, [summary("a", T + 50)])
    await feed.changes()
    jobs.pages = ([summary("a", T + 40)],)
    await feed.changes()
    await feed.changes()
    assert asked_since(aws_server) == [T - 5, T + 45, T + 45]


async def test_a_job_that_ends_behind_the_page_that_is_being_read_is_told_by_the_next_look(
    feed: StatusFeed, aws_server: AwsServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest change comes from a page that was read long after the ended job's own."""
    monkeypatch.setattr("worker.training.status_feed.time", clock)
    jobs = Jobs(aws_server, [summary("a", T + 1)], [summary("z", T + 2)])

    def answer(parameters: dict[str, Any]) -> dict[str, Any]:
        if "NextToken" in parameters and not clock.gone_by:
            clock.gone_by = 25.0
            ended = summary("a", T + 13, "Completed")
            jobs.pages = ([ended], [summary("z", T + 25)])
        answer = jobs.answer(parameters)
        since = parameters["LastModifiedTimeAfter"]
        listed = [job for job in answer["TrainingJobSummaries"] if job["LastModifiedTime"] > since]
        return {**answer, "TrainingJobSummaries": listed}

    aws_server.answers["ListTrainingJobs"] = answer
    clock.time = T + 10
    assert (await feed.changes())["a"].status == "InProgress"
    assert (await feed.changes())["a"].status == "Completed"
    await feed.changes()
    assert asked_since(aws_server)[::2] == [T - 5, T - 5, T + 20]


async def test_the_newest_of_two_summaries_of_a_job_wins_over_the_pages(
    feed: StatusFeed, aws_server: AwsServer
) -> None:
    Jobs(aws_server, [summary("a", T + 1)], [summary("a", T + 9, "Completed")])
    assert (await feed.changes())["a"].status == "Completed"


async def test_an_adopted_job_may_have_changed_before(feed: StatusFeed, aws_server: AwsServer) -> None:
    Jobs(aws_server, [summary("a", T + 50)])
    await feed.changes()
    feed.look_back_to(T - 1000)
    feed.look_back_to(T + 49)
    await feed.changes()
    await feed.changes()
    assert asked_since(aws_server)[1:] == [T - 3600 - 1005, T + 45], "once"


def fail(server: AwsServer, jobs: Jobs, page: int, *errors: AwsError) -> None:
    """Let the next calls for this page fail with these, one after the other."""
    left = list(errors)

    def answer(parameters: dict[str, Any]) -> dict[str, Any]:
        if left and int(parameters.get("NextToken", 0)) == page:
            raise left.pop(0)
        return jobs.answer(parameters)

    server.answers["ListTrainingJobs"] = answer


@pytest.mark.parametrize(
    ("failing_page", "error"),
    [(0, AwsError("ThrottlingException")), (1, AwsError("ValidationException", "The token has expired."))],
    ids=["throttled", "token refused"],
)
async def test_a_failed_look_is_repeated_from_where_it_began(
    feed: StatusFeed, aws_server: AwsServer, failing_page: int, error: AwsError
) -> None:
    fail(aws_server, Jobs(aws_server, [summary("a", T + 50)], [summary("b", T + 60)]), failing_page, error)
    feed.look_back_to(T - 1000)
    with pytest.raises(Throttled if failing_page == 0 else AwsRefused):
        await feed.changes()
    assert set(await feed.changes()) == {"a", "b"}
    assert asked_since(aws_server)[-1] == T - 3600 - 1005
    assert tokens(aws_server)[-2:] == [None, "1"]


async def test_a_further_page_that_fails_is_asked_for_again_however_often_it_is_throttled(
    feed: StatusFeed, aws_server: AwsServer, impatient: None
) -> None:
    """One other worker that uses the quota could let many pages begin anew for ever."""
    jobs = Jobs(aws_server, [summary("a", T + 50)], [summary("b", T + 60)], [summary("c", T + 70)])
    fail(
        aws_server, jobs, 1, *[AwsError("ThrottlingException")] * 20, AwsError("InternalFailure", status=500)
    )
    assert set(await feed.changes()) == {"a", "b", "c"}
    assert tokens(aws_server) == [None, *["1"] * 22, "2"]


async def test_a_token_that_gets_no_answer_for_long_is_given_up(
    feed: StatusFeed, aws_server: AwsServer, impatient: None
) -> None:
    jobs = Jobs(aws_server, [summary("a", T + 50)], [summary("b", T + 60)])
    fail(aws_server, jobs, 1, *[AwsError("InternalFailure", status=500)] * 9)
    with pytest.raises(Unreachable):
        await feed.changes()
    assert set(await feed.changes()) == {"a", "b"}
    assert tokens(aws_server) == [None, *["1"] * 9, None, "1"]


async def test_a_thousand_jobs_that_changed_in_one_second_are_listed_whole_and_not_for_ever(
    feed: StatusFeed, aws_server: AwsServer, clock: Clock
) -> None:
    clock.time = T + 1
    names = [f"job-{number}" for number in range(1000)]
    Jobs(aws_server, *([summary(name, T) for name in names[n : n + 100]] for n in range(0, 1000, 100)))
    assert set(await feed.changes()) == set(names)
    clock.time = T + 20
    await feed.changes()
    clock.time = T + 100
    await feed.changes()
    await feed.changes()
    asked = asked_since(aws_server)[::10]
    assert asked[:2] == [T - 5, T - 5], "lists lag: for half a minute it may be told late"
    assert asked[-1] == T + 65, "then it is not read again, although nothing newer has come"
