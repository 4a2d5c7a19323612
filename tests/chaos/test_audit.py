"""The audit finds what it is for: each broken promise alone, and nothing where all are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.audit import Sort, audit, console_time, out_of_order
from tests.chaos.evidence import Event, Evidence, Job, LedgerContent, Letter, Record, Run
from tests.chaos.workload import Case, Sent
from worker.intake.unstarted import NO_INIT

LAUNCH = Sent(
    Case(number=0, at=0, body="{}", launch_id="a" * 26, run_id="run-0", printed=("one", "two", "10%\r99%")),
    "a" * 26,
)
REFUSED = Sent(Case(number=1, at=0, body="[]", fate="LW-POLICY", queue="gpu"), "b" * 26, item="item-1")
EVENTS = (Event(1000, 1100, "one"), Event(1000, 1100, "two"), Event(1500, 1600, "10%\r99%"))
CONSOLE = [
    ("algo-1", console_time(1000), "one"),
    ("algo-1", console_time(1000), "two"),
    ("algo-1", console_time(1500), "99%"),
]
JOB = Job(name="run-0", launch_id="a" * 26, status="Completed", api_key="k", log={"algo-1": EVENTS})
RUN = Run(
    state="finished",
    exit_code=0,
    summary={"sagemaker/end": "completed", "launch/log_lines": 3},
    console=CONSOLE,
    files={
        "logs/algo-1/00001.log": "".join(f"{console_time(e.timestamp)}Z {e.message}\n" for e in EVENTS),
    },
)
LEDGER = LedgerContent(
    records={
        "a" * 26: Record(state="finished", owner="w", is_open=False, code=""),
        "b" * 26: Record(state="refused", owner="", is_open=False, code="LW-POLICY"),
    },
    workers=frozenset(),
    locks=frozenset(),
    text="",
)
WHOLE = Evidence(
    jobs=[JOB],
    runs={"run-0": RUN},
    failed_items={"item-1": "not allowed"},
    ledger=LEDGER,
    letters=[Letter(launch_id="b" * 26, code="LW-POLICY", reason="not allowed")],
    messages=(0, 0),
    left_over=[],
)


def found(evidence: Evidence, *sent: Sent) -> list[tuple[Sort, int]]:
    finding = audit(sent or (LAUNCH, REFUSED), evidence)
    return [(violation.sort, violation.count) for violation in finding.violations]


def with_run(**changes: Any) -> Evidence:
    return replace(WHOLE, runs={"run-0": replace(RUN, **changes)})


def with_console(*lines: tuple[str, str, str]) -> Evidence:
    return with_run(console=lines, summary={"sagemaker/end": "completed", "launch/log_lines": len(lines)})


def with_log(*events: Event) -> Evidence:
    file = "".join(f"{console_time(event.timestamp)}Z {event.message}\n" for event in events)
    run = replace(RUN, files={"logs/algo-1/00001.log": file})
    return replace(WHOLE, jobs=[replace(JOB, log={"algo-1": events})], runs={"run-0": run})


def with_record(launch_id: str, **changes: Any) -> Evidence:
    records = {**LEDGER.records, launch_id: replace(LEDGER.records[launch_id], **changes)}
    return replace(WHOLE, ledger=replace(LEDGER, records=records))


def test_a_whole_run_has_no_violation() -> None:
    finding = audit([LAUNCH, REFUSED], WHOLE)
    assert finding.violations == []
    assert (finding.jobs, finding.refusals, finding.printed, finding.in_wandb) == (1, 1, 3, 3)


def test_copies_of_one_refusal_are_one_refusal() -> None:
    """A crash between the copy and its record makes another copy: refusals are told at least once."""
    finding = audit([REFUSED], replace(WHOLE, jobs=[], letters=[*WHOLE.letters] * 2))
    assert (finding.refusals, finding.violations) == (1, [])


def test_a_late_event_may_stand_behind_what_was_read_before_it() -> None:
    late = with_log(Event(1000, 1700, "one"), *EVENTS[1:])
    console = (CONSOLE[1], CONSOLE[2], CONSOLE[0])
    moved = replace(late, runs={"run-0": replace(late.runs["run-0"], console=console)})
    assert found(moved) == []


def test_a_late_event_may_stand_behind_what_came_still_later() -> None:
    """`two` was ingested after `three` had been read, and found when `four` had been, too."""
    events = (
        Event(1000, 1100, "one"),
        Event(1100, 1700, "two"),
        Event(1200, 1300, "three"),
        Event(1800, 1900, "four"),
    )
    one, two, three, four = (("algo-1", console_time(e.timestamp), e.message) for e in events)
    assert out_of_order(events, (one, three, four, two)) == []
    assert out_of_order(events, (one, two, four, three)) == ["three"]


@pytest.mark.parametrize(
    ("make", "violation"),
    [
        (lambda: replace(WHOLE, jobs=[]), ("lost", 1)),
        (lambda: replace(WHOLE, jobs=[JOB, replace(JOB, name="run-0-r2")]), ("doubled", 1)),
        (lambda: replace(WHOLE, jobs=[JOB, replace(JOB, name="x", launch_id="c" * 26)]), ("doubled", 1)),
        (lambda: replace(WHOLE, jobs=[JOB, replace(JOB, name="x", launch_id="b" * 26)]), ("doubled", 1)),
        (lambda: replace(WHOLE, jobs=[replace(JOB, status="Failed")]), ("wrong", 1)),
        (lambda: replace(WHOLE, runs={}), ("lost", 3)),
        (lambda: with_console(*CONSOLE[:2]), ("lost", 1)),
        (lambda: with_console(*CONSOLE, CONSOLE[1]), ("doubled", 1)),
        (lambda: with_console(CONSOLE[1], CONSOLE[2], CONSOLE[0]), ("out of order", 1)),
        (lambda: with_run(holes=1), ("lost", 1)),
        (lambda: with_run(overwrites=2), ("lost", 2)),
        (lambda: with_run(refused=3), ("wrong", 3)),
        (lambda: with_run(exit_code=1, state="failed"), ("wrong", 1)),
        (lambda: with_run(state="running"), ("wrong", 1)),
        (lambda: with_run(files={}), ("wrong", 1)),
        (lambda: with_run(summary={"sagemaker/end": "completed", "launch/log_lines": 2}), ("wrong", 1)),
        (lambda: with_record("a" * 26, state="accepted"), ("wrong", 1)),
        (lambda: with_record("b" * 26, code="LW-GAVE-UP"), ("lost", 1)),
        (lambda: with_record("b" * 26, is_open=True), ("left over", 1)),
        (lambda: replace(WHOLE, letters=[]), ("lost", 1)),
        (lambda: replace(WHOLE, letters=[replace(WHOLE.letters[0], reason="")]), ("wrong", 1)),
        (
            lambda: replace(
                WHOLE, letters=[*WHOLE.letters, Letter(launch_id="a" * 26, code="LW", reason="x")]
            ),
            ("doubled", 1),
        ),
        (lambda: replace(WHOLE, failed_items={}), ("lost", 1)),
        (lambda: replace(WHOLE, messages=(1, 2)), ("left over", 3)),
        (lambda: replace(WHOLE, left_over=["process 7"]), ("left over", 1)),
        (lambda: replace(WHOLE, ledger=replace(LEDGER, locks=frozenset({"tag"}))), ("left over", 1)),
    ],
)
def test_a_broken_promise_is_found(make: Callable[[], Evidence], violation: tuple[Sort, int]) -> None:
    assert found(make()) == [violation]


def test_a_time_that_is_not_cloudwatchs_is_found() -> None:
    receive_time = ("algo-1", console_time(1001), "one")
    assert found(with_console(receive_time, *CONSOLE[1:])) == [("lost", 1), ("doubled", 1)]


def test_what_the_stack_itself_lost_is_not_laid_at_the_worker() -> None:
    (violation,) = audit([LAUNCH], replace(with_log(*EVENTS[:2]), letters=[], failed_items={})).violations[:1]
    assert "local stack" in violation.what


def test_the_launchs_own_key_belongs_in_its_container_and_nowhere_else() -> None:
    own = replace(LAUNCH, case=replace(LAUNCH.case, own_key="5" * 40))
    assert found(WHOLE, own, REFUSED) == [("wrong", 1)]
    given = replace(WHOLE, jobs=[replace(JOB, api_key="5" * 40)])
    assert found(given, own, REFUSED) == []
    assert found(replace(given, ledger=replace(LEDGER, text="5" * 40)), own, REFUSED) == [("wrong", 1)]


def test_a_job_that_starts_no_run_has_to_be_told_on_its_item() -> None:
    launch = replace(LAUNCH, item="item-0")
    assert found(WHOLE, launch, REFUSED) == [("wrong", 1)]
    told = replace(WHOLE, failed_items={**WHOLE.failed_items, "item-0": NO_INIT})
    assert found(told, launch, REFUSED) == []
