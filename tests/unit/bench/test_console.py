"""The check from outside: lost, doubled, overwritten and repeated lines are told apart."""

from __future__ import annotations

import json

import pytest

from bench.simulator.console import Console
from bench.simulator.latency import Latency

NOW = 10_000


def line(number: int, *, label: str = "algo-1", put: int = NOW - 500) -> str:
    return json.dumps({"ts": "2026-01-01T00:00:00", "label": label, "content": f"seq={number} put={put} xxx"})


def lines(*numbers: int) -> list[str]:
    return [line(number) for number in numbers]


def posted(*posts: tuple[int, list[str]]) -> Console:
    console = Console()
    for offset, content in posts:
        console.post(offset, content, NOW, Latency())
    return console


def faults(console: Console) -> dict[str, int]:
    return {
        name: count
        for name in ("missing", "doubled", "holes", "overwritten", "repeated", "foreign")
        if (count := getattr(console, name))
    }


def test_all_is_well() -> None:
    console = posted((0, lines(0, 1)), (2, lines(2)))
    assert faults(console) == {}
    assert console.length == 3


def test_containers_count_apart() -> None:
    assert faults(posted((0, [line(0), line(0, label="algo-2"), line(1)]))) == {}


@pytest.mark.parametrize(
    ("posts", "found"),
    [
        ([(0, lines(0, 2))], {"missing": 1}),
        ([(0, lines(0, 2)), (2, lines(1))], {}),
        ([(0, lines(0, 1, 1))], {"doubled": 1}),
        ([(0, lines(0)), (1, lines(0))], {"doubled": 1}),
        ([(0, lines(0)), (2, lines(1))], {"holes": 1}),
        ([(0, lines(0)), (0, lines(0))], {"repeated": 1}),
        ([(0, lines(0)), (0, lines(7))], {"overwritten": 1}),
        ([(0, lines(0, 1)), (1, lines(1))], {"overwritten": 1}),
        ([(0, ["Traceback"])], {"foreign": 1}),
    ],
)
def test_faults(posts: list[tuple[int, list[str]]], found: dict[str, int]) -> None:
    assert faults(posted(*posts)) == found


def test_plain_lines_of_older_servers_count_too() -> None:
    console = posted((0, [f"2026-01-01T00:00:00 [algo-1] seq={n} put={NOW} x" for n in range(3)]))
    assert faults(console) == {}
    assert console.containers["algo-1"].following == 3


def test_latency_is_from_ingestion() -> None:
    latency = Latency()
    Console().post(0, [line(0, put=NOW - 1000), line(1, put=NOW - 3000)], NOW, latency)
    assert latency.summary() == {"p50": 1.01, "p95": 3.01, "p99": 3.01, "max": 3.0}


def test_no_latency_without_lines() -> None:
    assert Latency().summary() == {"p50": None, "p95": None, "p99": None, "max": None}
