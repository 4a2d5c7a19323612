"""What scenarios say about their goals: each of them can be missed."""

from __future__ import annotations

from typing import Any

import pytest

from bench.programs import Usage
from bench.scenarios.ends import ends_measured
from bench.scenarios.throughput import live_judged
from bench.scenarios.windows import posts_judged

USAGE = Usage(60.0, 6.0, 1 << 27, 1 << 27, 0.0, 1, 3, 50)


@pytest.mark.parametrize(
    ("rate", "p95", "whole", "kept"),
    [
        (22e3, 4.9, True, True),
        (19e3, 4.9, True, False),
        (22e3, 5.1, True, False),
        (22e3, None, True, False),
        (22e3, 4.9, False, False),
    ],
)
def test_a_worker_that_falls_behind_does_not_keep_up(
    rate: float, p95: float | None, whole: bool, kept: bool
) -> None:
    assert live_judged(rate, p95, "", whole=whole).kept is kept


@pytest.mark.parametrize(("run", "project", "kept"), [(2, 500, True), (3, 10, False), (1, 501, False)])
def test_posts_are_held_to_what_wandb_allows(run: int, project: int, kept: bool) -> None:
    of_run, of_project = posts_judged({"run": run, "project": project}, "x")
    assert (of_run.kept and of_project.kept, of_run.value, of_project.value) == (
        kept,
        f"{run}, x",
        f"{project}, x",
    )


def report(**wandb: int) -> dict[str, Any]:
    """Of a thousand jobs with ten lines each, all of them finished."""
    faults = dict.fromkeys(("holes", "missing", "doubled", "overwritten"), 0)
    counts = {"lines_window": 0, "lines_in_files": 10_000, "runs_finished": 1000}
    posts = {"requests": {}, "most_posts_a_second": {"run": 1, "project": 1}, "latency": {}}
    return {
        **{"seconds": 60.0, "cpu_seconds": 6.0, "throttled": {}, "lines_in_cloudwatch": 10_000},
        "calls": {"FilterLogEvents": 2200, "DescribeTrainingJob": 1000},
        "wandb": {**faults, **counts, **posts, **wandb},
    }


@pytest.mark.parametrize(
    ("found", "finished", "lost", "kept"),
    [
        (report(), 1000, 0, True),
        (report(), 999, 0, False),
        (report(), 1000, 1, False),
        (report(doubled=1), 1000, 0, False),
        (report(lines_in_files=9_999), 1000, 0, False),
        (report(runs_finished=999), 1000, 0, False),
    ],
)
def test_ends_lose_nothing_and_come_to_their_end(
    found: dict[str, Any], finished: int, lost: int, kept: bool
) -> None:
    measurement = ends_measured(1000, found, USAGE, [30.0] * finished, lost)
    assert [judged.kept for judged in measurement.judged if judged.goal == "ends"] == [kept]
    assert "FilterLogEvents alone takes 440 s" in measurement.notes[0]
