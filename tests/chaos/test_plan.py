"""The plan and the workload follow from the seed, and leave no kind of fault out."""

from __future__ import annotations

import json
from collections import Counter
from typing import get_args

import pytest

from tests.chaos.plan import AWS_SERVICES, DEFAULTS, HEARTBEAT, Kind, Options, plan_of
from tests.chaos.workload import Case, workload
from worker.launch.intent import read_message
from worker.launch.message import LaunchMessage
from worker.ledger.membership import MISSED_BEATS

LONG = Options(minutes=10, ledger="dynamodb")


def cases(seed: int = 1, launches: int = 200) -> list[Case]:
    return workload(seed, launches, seconds=60, image="train:1", role_arn="arn:aws:iam::123456789012:role/r")


def test_the_same_seed_is_the_same_plan() -> None:
    assert plan_of(LONG) == plan_of(LONG)
    assert plan_of(LONG) != plan_of(Options(minutes=10, ledger="dynamodb", seed=2))


def test_every_kind_of_fault_comes_at_every_service_within_the_time() -> None:
    plan = plan_of(LONG)
    assert {fault.kind for fault in plan} == set(get_args(Kind))
    for kind in ("AWS throttles", "AWS 5xx", "AWS cut before", "AWS cut after"):
        assert {fault.target for fault in plan if fault.kind == kind} == set(AWS_SERVICES)
    assert [fault.at for fault in plan] == sorted(fault.at for fault in plan)
    assert plan[-1].at < 600


def test_faults_come_as_often_as_asked() -> None:
    count = Counter(fault.kind for fault in plan_of(LONG))
    assert count["kill -9"] == pytest.approx(600 / DEFAULTS.kill_every, rel=0.1)
    assert count["SIGSTOP"] == pytest.approx(600 / DEFAULTS.freeze_every, rel=0.15)
    quiet = Options(kill_every=0, freeze_every=0, terminate_every=0, fault_every=0)
    assert plan_of(quiet) == []


def test_a_freeze_is_longer_than_a_worker_may_be_silent() -> None:
    assert all(fault.seconds > MISSED_BEATS * HEARTBEAT for fault in plan_of(LONG) if fault.kind == "SIGSTOP")


def test_a_ledger_that_is_not_there_does_not_fail() -> None:
    assert "dynamodb" not in {fault.target for fault in plan_of(Options(minutes=10, ledger="sqlite"))}


def test_a_run_says_how_to_make_it_again() -> None:
    options = Options(seed=7, launches=20, kill_every=1.5)
    assert options.command == (
        'make chaos ARGS="--seed 7 --workers 3 --launches 20 --ledger sqlite --executor process --minutes 5'
        ' --kill-every 1.5"'
    )


def test_the_same_seed_is_the_same_workload() -> None:
    assert cases() == cases()
    assert cases() != cases(seed=2)


def test_the_workload_has_all_sorts() -> None:
    sent = cases()
    jobs = [case for case in sent if case.fate == "job"]
    assert len(jobs) == 200
    assert {case.fate for case in sent} == {"job", "LW-BAD-MESSAGE", "LW-POLICY"}
    assert {case.hosts for case in jobs} == {1, 2, 3}
    assert {case.copies for case in jobs} >= {1, 2}
    for wanted in ("exit_code", "own_key", "queue"):
        assert any(getattr(case, wanted) for case in jobs), wanted
    printed = [line for case in jobs for line in case.printed]
    assert any("\r" in line for line in printed)
    assert any(not line.isascii() for line in printed)
    assert any(not case.printed for case in jobs)
    assert max(len(case.printed) for case in jobs) > 100


def test_what_is_meant_to_be_read_can_be_read() -> None:
    for case in cases():
        readable = isinstance(read_message(case.body), LaunchMessage)
        assert readable == (case.fate != "LW-BAD-MESSAGE"), case.body
        if readable:
            arguments = json.loads(case.body)["runSpec"]["overrides"]["args"]
            assert len(arguments) <= 100, "more than SageMaker takes"
            assert max(map(len, arguments)) <= 256
