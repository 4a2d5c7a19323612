"""Heartbeats of many runs are spread over their interval, and none is left out."""

from __future__ import annotations

from collections import Counter

from worker.tracking.turns import Turns


def test_each_has_one_turn_an_interval_and_they_are_spread() -> None:
    names = [f"launch-{number}" for number in range(900)]
    turns, beats, most = Turns(30.0), Counter[str](), 0
    for second in range(1, 301):
        due = turns.due(names, float(second))
        if second > 30:
            most = max(most, len(due))
        beats.update(due)
    assert most <= 45, "30 a second on average"
    assert set(beats) == set(names)
    assert set(beats.values()) <= {10, 11}


def test_the_first_comes_within_half_an_interval_and_none_is_later_than_an_interval() -> None:
    names = [f"launch-{number}" for number in range(200)]
    turns, last = Turns(30.0), dict.fromkeys(names, -15.0)
    for second in range(301):
        for name in turns.due(names, float(second)):
            assert second - last[name] <= 31
            last[name] = second
    assert min(last.values()) >= 269


def test_after_a_pause_of_the_process_they_are_spread_again() -> None:
    names = [f"launch-{number}" for number in range(900)]
    turns, most = Turns(30.0), 0
    turns.due(names, 0.0)
    assert set(turns.due(names, 1000.0)) == set(names)
    for second in range(1001, 1091):
        most = max(most, len(turns.due(names, float(second))))
    assert most <= 90, "half an interval has them all"


def test_a_pause_of_the_process_brings_no_second_turn_at_once() -> None:
    turns = Turns(30.0)
    turns.due(["launch"], 0.0)
    assert turns.due(["launch"], 1000.0) == ["launch"]
    assert turns.due(["launch"], 1001.0) == []
