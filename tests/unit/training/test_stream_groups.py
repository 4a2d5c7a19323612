"""Streams share calls unless one of them makes the others be read again."""

from __future__ import annotations

from worker.training.stream_groups import stream_groups


def test_a_hundred_streams_share_a_call() -> None:
    groups = stream_groups({f"s{n:03}": 1_000_000 - n for n in range(250)}, {})
    assert [len(group) for group in groups] == [100, 100, 50]
    assert groups[0][0] == "s000", "the newest first"


def test_a_silent_stream_does_not_make_busy_ones_be_read_again() -> None:
    since = {"busy": 1_000_000, "also busy": 999_500, "silent": 880_000}
    assert stream_groups(since, {"busy": 500.0, "also busy": 500.0}) == [["busy", "also busy"], ["silent"]]


def test_a_few_events_are_read_again_for_the_sake_of_fewer_calls() -> None:
    since = {"slow": 1_000_000, "silent": 880_000}
    assert stream_groups(since, {"slow": 1.0}) == [["slow", "silent"]]


def test_a_new_stream_is_read_on_its_own_beside_a_busy_one() -> None:
    assert stream_groups({"busy": 1_700_000_000_000, "new": -1}, {"busy": 1.0}) == [["busy"], ["new"]]
