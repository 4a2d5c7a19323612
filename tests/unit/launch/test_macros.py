"""Macros: what W&B's agent substitutes, without what it should not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.launches import launch_of, message
from worker.launch.macros import launch_macros, substitute

MACROS = {"a": "1", "b": "${a}", "empty": ""}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x-${a}-${a}", "x-1-1"),
        ("${b}", "${a}"),
        ("${empty}|", "|"),
        ("${unknown}", "${unknown}"),
        ("$a {a} ${a b} ${}", "$a {a} ${a b} ${}"),
        (["${a}", 2, None], ["1", 2, None]),
        ({"${a}": {"k": ["${a}"]}}, {"${a}": {"k": ["1"]}}),
        (5, 5),
        (True, True),
    ],
)
def test_substitute(value: Any, expected: Any) -> None:
    assert substitute(value, MACROS) == expected


def test_the_macros_of_a_launch() -> None:
    launch = launch_of(message(name="smoke", author="jdoe", run_id="r1"))
    assert launch_macros(launch, image_uri="img:1", extra={}) == {
        "project_name": "vision",
        "entity_name": "acme",
        "run_id": "r1",
        "run_name": "smoke",
        "image_uri": "img:1",
        "author": "jdoe",
    }


def test_built_ins_win_and_absent_values_render_as_nothing_q3() -> None:
    macros = launch_macros(
        launch_of(message(run_id="r1")), image_uri=None, extra={"run_id": "stolen", "TEAM": "v"}
    )
    assert (macros["run_id"], macros["TEAM"]) == ("r1", "v")
    assert substitute("${run_name}${author}${image_uri}", macros) == ""


def test_the_worker_s_environment_is_no_source_q2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    macros = launch_macros(launch_of(message()), image_uri=None, extra={})
    assert substitute("${AWS_SECRET_ACCESS_KEY}", macros) == "${AWS_SECRET_ACCESS_KEY}"
