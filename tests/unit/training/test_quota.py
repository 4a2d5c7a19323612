"""What a refusal says about a quota, and who may ask again."""

from __future__ import annotations

import pytest

from worker.training.quota import Quota, WaitingLines, quota_of, waits_for

SENTENCE = (
    "The account-level service limit '{name}' is {limit} Instances, with current utilization of {used} Instances and a"
    " request delta of {wanted} Instances. Please use AWS Service Quotas to request an increase for this quota."
)


@pytest.mark.parametrize(
    ("limit", "used", "wanted", "too_small"),
    [(1, 0, 2, True), (0, 0, 1, True), (2, 2, 1, False), (4, 3, 4, False), (2, 3, 1, False)],
)
def test_a_quota_is_too_small_or_only_used_up(limit: int, used: int, wanted: int, *, too_small: bool) -> None:
    found = quota_of(
        SENTENCE.format(name="ml.g5.xlarge for training job usage", limit=limit, used=used, wanted=wanted)
    )
    assert found == Quota("ml.g5.xlarge for training job usage", limit, used, wanted)
    assert found.is_too_small is too_small


def test_numbers_may_be_written_in_groups() -> None:
    text = "service limit 'x' is 1,000 Instances, with current utilization of 999.0, and a request delta of 1,001."
    assert quota_of(text) == Quota("x", 1000, 999, 1001)
    bare = "service limit 'x' is 2, with current utilization of 1, and a request delta of 2"
    assert quota_of(bare) == Quota("x", 2, 1, 2)


def test_the_older_wording_and_unknown_ones() -> None:
    old = (
        "The account-level service limit for training-job/ml.p2.xlarge is 0 Instances, with current utilization of 0"
        " Instances and a request delta of 2 Instances. Please contact AWS support."
    )
    assert quota_of(old) == Quota("training-job/ml.p2.xlarge", 0, 0, 2)
    assert quota_of("You have too many jobs.") is None


def test_the_reason_is_the_same_however_much_of_the_quota_is_used() -> None:
    assert waits_for(Quota("x", 2, 1, 2)) == waits_for(Quota("x", 2, 2, 1))
    assert waits_for(Quota("x", 2, 2, 1)) != waits_for(Quota("x", 3, 3, 1))


def test_a_line_asks_with_growing_pauses_and_at_once_when_a_job_has_ended() -> None:
    lines = WaitingLines(lambda tries: 10.0 * 2**tries)
    assert lines.may_ask("a", 0)
    lines.refused("a", "full", 0)
    assert (lines.may_ask("a", 9.9), lines.may_ask("a", 10)) == (False, True)
    lines.refused("a", "full", 10)
    assert (lines.may_ask("a", 29), lines.may_ask("a", 30), lines.may_ask("b", 0)) == (False, True, True)
    lines.observe({"a": 2}, ["a"], 11)
    assert not lines.may_ask("a", 12)
    lines.observe({"a": 1}, ["a"], 12)
    assert lines.may_ask("a", 12)


def test_a_line_moves_up_when_one_gets_in_and_closes_when_nobody_waits() -> None:
    lines = WaitingLines(lambda tries: 10.0)
    lines.refused("a", "full", 0)
    lines.admitted("a", 3)
    assert lines.may_ask("a", 3)
    assert lines.reason("a") == "full", "one at a time, until nobody waits"
    lines.observe({}, [], 4)
    assert lines.reason("a") == ""


def test_a_line_that_was_taken_over_asks_at_once() -> None:
    lines = WaitingLines(lambda tries: 10.0)
    lines.remember("a", "full", 5)
    assert (lines.reason("a"), lines.may_ask("a", 5)) == ("full", True)
    lines.refused("a", "full", 5)
    lines.remember("a", "full", 6)
    assert not lines.may_ask("a", 6)
