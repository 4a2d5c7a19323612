"""The comparison of /metrics with what happened finds each disagreement, and forgives nothing but gaps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.metrics import Life, Series, Truth, at_rest, disagreements, read_page
from tests.chaos.proxy import Request
from worker.ops.metrics import Metrics


def request(name: str, at: float, status: int = 200, **more: Any) -> Request:
    values: dict[str, Any] = {"name": name, "received_at": at, "answered_at": at + 0.1, "status": status}
    return Request(**{**values, "whole": True, **more})


REQUESTS = [
    request("sagemaker CreateTrainingJob", 10),
    request("sagemaker CreateTrainingJob", 11, 400, throttled=True),
    request("sagemaker CreateTrainingJob", 12),
    request("logs FilterLogEvents", 13),
    request("wandb file_stream", 20, lines=3),
    request("wandb file_stream", 21, lines=4),
    request("wandb UpsertBucket", 22, 502),
]
TRUTH = Truth(requests=REQUESTS, jobs=2, refusals=1, lines=7, ended=[30, 31], refused=[15], told_by_others=0)
COUNTED: dict[Series, float] = {
    ("launch_aws_calls_total", "CreateTrainingJob"): 3,
    ("launch_aws_calls_total", "FilterLogEvents"): 1,
    ("launch_aws_throttles_total", "CreateTrainingJob"): 1,
    ("launch_wandb_posts_total", "200"): 2,
    ("launch_wandb_posts_total", "502"): 1,
    ("launch_log_lines_total", ""): 7,
    ("launch_submits_total", "created"): 2,
    ("launch_jobs_ended_total", ""): 2,
    ("launch_outcomes_total", "never"): 1,
}


def life(values: Mapping[Series, float], **changes: Any) -> Life:
    return Life(Path("worker-0.log"), 0.0, scraped_at=100.0, values=values, **changes)


def test_a_worker_that_counts_what_happened_agrees() -> None:
    assert disagreements([life(COUNTED)], TRUTH) == []
    halves = [{key: value / 2 for key, value in COUNTED.items()}] * 2
    assert disagreements([life(half) for half in halves], TRUTH) == []


@pytest.mark.parametrize("series", COUNTED)
@pytest.mark.parametrize("by", [1, -1])
def test_one_more_or_one_less_of_anything_is_found(series: Series, by: int) -> None:
    wrong = disagreements([life({**COUNTED, series: COUNTED[series] + by})], TRUTH)
    assert len(wrong) >= 1, wrong


def test_a_status_that_nobody_answered_is_found() -> None:
    (wrong,) = disagreements([life({**COUNTED, ("launch_wandb_posts_total", "429"): 1})], TRUTH)
    assert "429" in wrong


def test_what_a_killed_worker_did_after_its_last_scrape_is_forgiven_and_no_more() -> None:
    """It was scraped before its two last posts."""
    killed = life({**COUNTED, ("launch_wandb_posts_total", "200"): 0, ("launch_log_lines_total", ""): 0})
    killed.scraped_at, killed.ended_at = 19.0, 21.5
    assert disagreements([killed], TRUTH) == []
    killed.ended_at = 20.5
    assert len(disagreements([killed], TRUTH)) == 2


LOST: list[Callable[[Request], Request]] = [
    lambda post: replace(post, whole=False),
    lambda post: replace(post, status=502),
]


@pytest.mark.parametrize("change", LOST)
def test_lines_whose_answer_did_not_come_whole_are_not_counted(change: Callable[[Request], Request]) -> None:
    truth = replace(TRUTH, requests=[change(r) if r.lines == 4 else r for r in REQUESTS], lines=3)
    wrong = disagreements([life(COUNTED)], truth)
    assert any(what.startswith("lines that W&B took: the workers count 7") for what in wrong)


def test_a_page_is_read_as_it_is_written() -> None:
    metrics = Metrics()
    metrics.jobs_ended.labels("completed").inc(2)
    metrics.jobs_ended.labels("failed").inc()
    metrics.outcomes.labels("never", "agent").inc()
    metrics.outcomes.labels("never", "build").inc()
    metrics.jobs.labels("accepted").set(3)
    values = read_page(metrics.text().decode())
    assert values["launch_jobs_ended_total", ""] == 3
    assert values["launch_outcomes_total", "never"] == 2
    assert at_rest([life(values)]) == ["worker-0.log: launch_jobs accepted is 3"]
    assert at_rest([life(values, ended_at=200.0)]) == [], "it is gone"


def test_what_a_worker_drops_when_it_is_interrupted_is_forgiven() -> None:
    dropped = life({**COUNTED, ("launch_log_lines_total", ""): 3})
    assert len(disagreements([dropped], TRUTH)) == 1
    dropped.interrupted.append(21.2)
    assert disagreements([dropped], TRUTH) == []
