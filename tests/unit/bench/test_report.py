"""The table of a run, and that each scenario has a short form."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from bench.catalogue import SCENARIOS
from bench.measurement import WORKER, Measurement, Target
from bench.report import BEGIN, END, table

ROOT = Path(__file__).parents[3]


def results(*measurements: Measurement) -> dict[str, object]:
    return {"scenarios": [{"name": "x", "measurements": [asdict(each) for each in measurements]}]}


def test_a_missed_target_is_shown_as_one() -> None:
    found = Measurement(
        scenario="10 jobs",
        program=WORKER,
        result="fast",
        seconds=2.0,
        target=Target("≤ 1 s", kept=False),
        calls={"FilterLogEvents": 5},
        rss_mib=100.4,
        cpu=0.051,
        latency={"p50": 1.0, "p95": 2.0, "p99": None},
        lines=1000,
        lost=1,
    )
    row = table(results(found)).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        *("10 jobs", WORKER, "fast", "≤ 1 s: **missed**", "FilterLogEvents 2.50", "0", "100", "5.1%", ""),
        *("1.00 / 2.00 /", "1,000", "1 / 0"),
    ]


def test_results_are_json() -> None:
    found = Measurement(scenario="s", program=WORKER, result="r", seconds=0.0)
    assert json.loads(json.dumps(results(found)))
    assert table(results(found)).count("\n") == 2


def test_the_page_has_room_for_the_numbers() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text.index(BEGIN) < text.index(END)


def test_the_scenarios_are_listed_in_the_docs() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert not [scenario.name for scenario in SCENARIOS if f"`{scenario.name}`" not in text]
