"""Heartbeats of many runs are spread over their interval, and none is left out."""

from __future__ import annotations

from collections import Counter

from worker.tracking.turns import Turns


def test_each_has_one_turn_an_interval_and_they_are_spread() -> None:
    names = [f"launch-{number}" for number in range(900)]
    turns, beats, most = Turns(30.0), Counter[str](), 0
    for second in range(1, 301):
        due = turns.due(names, float(second))
        most = max(most, len(due))
        beats.update(due)
    assert most <= 60, "30 a second on average"
    assert set(beats) == set(names)
    assert set(beats.values()) <= {9, 10}


def test_a_pause_of_the_process_brings_no_second_turn_at_once() -> None:
    turns = Turns(30.0)
    turns.due(["launch"], 0.0)
    assert turns.due(["launch"], 1000.0) == ["launch"]
    assert turns.due(["launch"], 1001.0) == []
