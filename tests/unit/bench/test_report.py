"""The tables of a run, and that each scenario has a short form."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.catalogue import SCENARIOS
from bench.measurement import AGENT, WORKER, Judged, Measurement, at_least, at_most
from bench.report import BEGIN, END, tables, write_page

ROOT = Path(__file__).parents[3]
FACTS = {"commit": "abc", "cores": 2, "cpu": "x", "memory_gib": 1, "kernel": "6", "python": "3.11"}


def results(*measurements: Measurement) -> dict[str, Any]:
    scenario = {"name": "x", "what": "x", "seconds": 60.0}
    return {
        "machine": FACTS,
        "at": "now",
        "command": "python -m bench run",
        "scenarios": [{**scenario, "measurements": [asdict(each) for each in measurements]}],
    }


def measured(program: str = WORKER, **more: Any) -> Measurement:
    return Measurement(
        **{"scenario": "10 jobs", "program": program, "result": "fast", "seconds": 2.0, **more}
    )


def cells(text: str, start: str) -> list[str]:
    """Of the first row that starts so."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_measurement_is_a_row() -> None:
    found = measured(
        calls={"FilterLogEvents": 5},
        rss_mib=100.4,
        cpu=0.051,
        latency={"p50": 1.0, "p95": 2.0, "p99": None},
        lines=1000,
        lost=1,
        lag={"p99": 0.005, "max": 0.075},
    )
    assert cells(tables(results(found)), "10 jobs") == [
        *("10 jobs", WORKER, "fast", "FilterLogEvents 2.50", "0", "100", "5.1%", ""),
        *("1.00 / 2.00 /", "1,000", "1 / 0", "5 / 75"),
    ]


def test_a_goal_has_both_programs_and_a_verdict() -> None:
    ours = measured(judged=(at_least("submits", 41.0, 25, "41.0/s"),))
    agents = measured(AGENT, judged=(Judged("submits", "1.80/s"),))
    row = cells(tables(results(ours, agents)), "submits without")
    assert row[1:] == ["≥ 25/s", "41.0/s", "1.80/s", "kept"]


def test_a_missed_goal_is_shown_as_one_with_what_held_it_up() -> None:
    judged = (
        at_most("memory", 250.0, 200.0, "250 MiB"),
        at_least("quota", 0.99, 0.95, "1 failed", and_also=False),
    )
    found = measured(judged=judged, simulator_cpu=0.97, throttled={"CreateTrainingJob": 3})
    why = "**missed**: the simulator used 97% of its core and was the limit; throttled: CreateTrainingJob 3"
    assert cells(tables(results(found)), "RSS at 1,000")[2:] == ["250 MiB", "not measured", why]
    assert cells(tables(results(found)), "submits at a quota")[-1] == why
    late = tables(results(measured(judged=judged, numbers={"waited": 0.3})))
    assert cells(late, "RSS at 1,000")[-1] == "**missed**: the worker waited for its core for 30% of the time"
    alone = cells(tables(results(measured(judged=judged))), "RSS at 1,000")
    assert alone[-1] == "**missed**: nothing else was short: the worker itself"


def test_lines_that_were_lost_are_told_as_the_reason() -> None:
    found = measured(judged=(at_least("live", 21e3, 2e4, "21,000/s", and_also=False),), lost=3, doubled=1)
    row = cells(tables(results(found)), "lines through one worker, 100 jobs, as")
    assert row[-1] == "**missed**: lines: 3 lost, 1 doubled"


def test_of_several_measurements_the_worst_counts() -> None:
    stalls = [measured(judged=(at_most("lag", lag, 0.05, f"{lag} s"),)) for lag in (0.025, 0.075, 0.05)]
    assert cells(tables(results(*stalls)), "longest stall")[2] == "0.075 s"
    assert cells(tables(results(stalls[0], stalls[2])), "longest stall")[2] == "0.05 s"


def test_what_was_not_measured_is_not_judged() -> None:
    text = tables(results(measured()))
    assert cells(text, "restart with")[2:] == ["not measured", "cannot: forgets them", "not judged"]


def test_results_are_json() -> None:
    found = measured(judged=(at_least("submits", 0.0, 25, "none"),))
    assert tables(json.loads(json.dumps(results(found), allow_nan=False))) == tables(results(found))


def test_the_page_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_page(
            results(measured(notes=("a note",))), tmp_path, draw=lambda _, folder: {"a.svg": folder.name}
        )
    text = page.read_text()
    assert text.startswith(
        f"before\n{BEGIN}\n\nMeasured now with `python -m bench run` in 1 minutes, commit abc"
    )
    assert text.endswith(f"- 10 jobs, {WORKER}: a note\n\n![img](img/a.svg)\n\n{END}\nafter\n")


def test_the_page_has_room_for_the_numbers() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text.index(BEGIN) < text.index(END)


def test_the_scenarios_are_listed_in_the_docs() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert not [scenario.name for scenario in SCENARIOS if f"`{scenario.name}`" not in text]
