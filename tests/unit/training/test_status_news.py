"""Which listed states are news, and how often to look."""

from __future__ import annotations

import pytest

from tests.unit.records import record, waiting
from worker.launch.record import JobFacts
from worker.training.status_news import Summary, is_news, pace_of_looks

TRAINING = JobFacts("InProgress", "Training")


def listed(status: str, secondary: str, modified: float = 1.0) -> Summary:
    return Summary("job", status, secondary, modified)


@pytest.mark.parametrize(
    ("now", "before", "news"),
    [
        (listed("InProgress", "Training"), None, False),
        (listed("InProgress", "Uploading"), None, True),
        (listed("Completed", "Completed"), None, True),
        # Listed twice: DescribeTrainingJob was newer than the list, or the list has no secondary states.
        (listed("InProgress", "Downloading"), listed("InProgress", "Downloading"), False),
        (listed("InProgress", ""), listed("InProgress", ""), False),
        (listed("InProgress", "", 2.0), listed("InProgress", "", 1.0), True),
        # An end is never passed over, also when Describe lagged behind the list.
        (listed("Completed", "Completed"), listed("Completed", "Completed"), True),
    ],
)
def test_news(now: Summary, before: Summary | None, news: bool) -> None:
    assert is_news(now, TRAINING, before) is news


@pytest.mark.parametrize(
    ("modified", "before", "news"),
    [
        (101.0, None, False),
        (130.0, None, True),
        (130.0, listed("InProgress", "Training", 100.0), True),
        (130.0, listed("InProgress", "Training", 130.0), False),
    ],
)
def test_an_interruption_that_is_over_between_two_looks_is_news(
    modified: float, before: Summary | None, news: bool
) -> None:
    known = JobFacts("InProgress", "Training", transitions=(("Starting", 90.0), ("Training", 100.0)))
    assert is_news(listed("InProgress", "Training", modified), known, before) is news


def test_looks_are_more_frequent_while_something_happens() -> None:
    quiet = [record(f"launch-{number}") for number in range(3)]
    assert pace_of_looks(quiet, 10) == 1
    assert pace_of_looks(quiet, 301) == 2
    starting = record("launch-9", facts=JobFacts("InProgress", "Starting"))
    assert pace_of_looks([*quiet, starting], 10) == 0.5
    assert pace_of_looks([*quiet, starting], 301) == 1, "it may wait for a machine for hours"
    assert pace_of_looks([*quiet, record("launch-9", stop_reason="asked to")], 10) == 0.5
    over = [waiting("launch-8"), record("launch-9", facts=JobFacts("Completed", "Completed"))]
    assert pace_of_looks([*quiet, *over], 10) == 1
