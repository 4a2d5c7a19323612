"""MetricDefinitions over log lines: the first group, as a number, whatever the expression does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.records import record
from worker.launch.console import ConsoleLine
from worker.tracking.history import history_rows
from worker.tracking.metric_definitions import definitions_of, metrics_in, unusable

DEFINITIONS = (
    ("loss", r"loss=([0-9.eE+-]+|nan|inf)"),
    ("eval:acc", r"'eval_acc': ([0-9]+(.|e\-)[0-9]+),?"),
)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("epoch 1 loss=0.25 done", {"loss": 0.25}),
        ("loss=1e-3, {'eval_acc': 0.75, 'x': 1}", {"loss": 0.001, "eval:acc": 0.75}),
        ("loss=0.5 loss=0.4", {"loss": 0.5}),
        ("loss=...", {}),
        ("loss=nan", {"loss": "NaN"}),
        ("loss=inf", {"loss": "Infinity"}),
        ("no metric", {}),
        ("", {}),
    ],
)
def test_a_line_has_what_matches(line: str, found: dict[str, float | str]) -> None:
    assert metrics_in(line, DEFINITIONS) == found
    json.dumps(metrics_in(line, DEFINITIONS), allow_nan=False)


def test_java_names_groups_and_classes_of_letters_are_understood() -> None:
    assert metrics_in("Verlust größe=3,4", (("x", r"(?<value>\p{L}+)=(\d)"),)) == {}
    assert metrics_in("größe=3", (("x", r"\p{L}+=(?<value>\d)"),)) == {"x": 3.0}


def test_what_cannot_be_used_is_named_and_does_no_harm() -> None:
    bad = (("ahead", r"(?<=loss=)(\d+)"), ("no group", "loss"), ("broken", "("), *DEFINITIONS)
    assert unusable(bad) == ["ahead", "no group", "broken"]
    assert metrics_in("loss=3", bad) == {"loss": 3.0}


@pytest.mark.timeout(30)  # what backtracks takes years
def test_no_expression_can_hang_the_worker() -> None:
    metrics_in("a" * 100_000 + "!", (("evil", r"^(a+)+$"), ("long", "(.*a){20}b")))


def test_they_are_read_from_the_request() -> None:
    algorithm = {"MetricDefinitions": [{"Name": "loss", "Regex": "loss=(.*)"}], "TrainingImage": "i"}
    assert definitions_of({"AlgorithmSpecification": algorithm}) == (("loss", "loss=(.*)"),)
    assert definitions_of({"AlgorithmSpecification": {}}) == definitions_of(None) == ()


def test_rows_have_the_time_of_their_line_and_states_come_first() -> None:
    launch = record(metrics=DEFINITIONS, accepted_at=1000.0)
    lines = [ConsoleLine(1_010_500, "algo-1", "loss=0.5"), ConsoleLine(1_011_000, "algo-1", "nothing")]
    rows = history_rows(launch, 7, lines, [("Training", 1005.0)])
    assert rows == [
        {"sagemaker/secondary_status": "Training", "_timestamp": 1005.0, "_runtime": 5.0, "_step": 7},
        {"loss": 0.5, "_timestamp": 1010.5, "_runtime": 10.5, "_step": 8},
    ]
    several = history_rows(replace(launch, instance_count=2), 0, lines, ())
    assert several[0]["sagemaker/instance"] == "algo-1"
