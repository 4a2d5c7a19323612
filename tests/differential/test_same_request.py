"""What W&B's agent does rightly, this worker does too, and it does the same for what only it understands."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import in_ci
from tests.differential.comparison import Twist, assert_same, our_request
from tests.differential.launches import Case, cases
from tests.unit.launches import SAGEMAKER, paths
from worker.errors import BadMessage

EXPLORATION = settings(
    max_examples=300,
    deadline=None,
    derandomize=in_ci(),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
USER_S_OWN = ("Environment", "HyperParameters")
"""Maps whose keys are the user's: nobody respells them."""


@EXPLORATION
@given(cases())
def test_both_agents_build_the_same_request(case: Case) -> None:
    assert assert_same(case) == {"D1", "D2"}


def arguments_of(case: Case) -> dict[str, Any]:
    arguments: dict[str, Any] = case.message["runSpec"]["resource_args"]["sagemaker"]
    return arguments


def copied(case: Case) -> Case:
    return Case(copy.deepcopy(case.message), case.job, case.built)


def respell(value: Any, spell: Callable[[str], str]) -> Any:
    """Every name of CreateTrainingJob in another spelling, at every depth."""
    if isinstance(value, list):
        return [respell(item, spell) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        spell(key): item if key in USER_S_OWN or key == "builder" else respell(item, spell)
        for key, item in value.items()
    }


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


SPELLINGS: list[Callable[[str], str]] = [
    snake,
    str.lower,
    str.upper,
    lambda name: name[:1].lower() + name[1:],
]
NULLS = {
    "Tags", "Environment", "HyperParameters", "VpcConfig", "InputDataConfig", "AlgorithmSpecification",
    "TrainingJobName", "CheckpointConfig", "region", "builder", "no_such_argument",
}  # fmt: skip


def prepare(clean: Case, chosen: set[str]) -> None:
    """What has to be there before it can be written in another way."""
    arguments, spec = arguments_of(clean), clean.message["runSpec"]
    arguments["RoleArn"] = arguments.pop("role_arn", None) or arguments.pop("RoleArn")
    environment = arguments.setdefault("Environment", {})
    if "D3" in chosen:
        arguments["RoleArn"] = f"arn:aws:iam::123456789012:role/{spec['project'].lower()}"
    if "D5" in chosen:
        spec.pop("name", None)
        environment["ABSENT"] = ""
    if "D11" in chosen:
        environment |= {"NUMBER": "1", "YES": "true", "LIST": "[1, null]"}


def change_values(written: Case, chosen: set[str], role: str) -> None:
    arguments = arguments_of(written)
    if "D3" in chosen:
        arguments["RoleArn"] = "arn:aws:iam::123456789012:role/${project_name}"
    elif "D16" in chosen and not role.startswith("arn:"):
        arguments["RoleArn"] = f"/role/{role}"
    if "D5" in chosen:
        arguments["Environment"]["ABSENT"] = "${run_name}"
    if "D11" in chosen:
        arguments["Environment"] |= {"NUMBER": 1, "YES": True, "LIST": [1, None]}
    if "D24" in chosen:
        written.message["runSpec"].setdefault("author", "")


def add_nulls(written: Case) -> None:
    arguments, spec = arguments_of(written), written.message["runSpec"]
    taken = {key.replace("_", "").lower() for key in arguments}
    arguments.update({key: None for key in NULLS if key.replace("_", "").lower() not in taken})
    absent = ("docker", "git", "name", "author", "sweep_id", "uri", "registry")
    spec.update({key: None for key in absent if key not in spec})
    spec["overrides"] = {"args": None, "files": None, "entry_point": None, **spec["overrides"]}


@st.composite
def twists(draw: st.DrawFn) -> tuple[Case, Twist]:
    """A clean case, and the same launch with quirks that this worker sees through."""
    clean = copied(draw(cases()))
    chosen = draw(st.sets(st.sampled_from(["D3", "D5", "D9", "D10", "D11", "D16", "D24"]), min_size=1))
    prepare(clean, chosen)
    written = copied(clean)
    role = arguments_of(clean)["RoleArn"]
    change_values(written, chosen, role)
    if "D9" in chosen:
        target = arguments_of(written)
        spelled = respell(target, draw(st.sampled_from(SPELLINGS)))
        target.clear()
        target.update(spelled)
    if "D10" in chosen:
        add_nulls(written)
    return clean, Twist(written, chosen)


@EXPLORATION
@given(twists())
def test_what_only_this_worker_understands_leads_to_the_same_request(pair: tuple[Case, Twist]) -> None:
    clean, written = pair
    assert assert_same(clean, written) == {"D1", "D2", *written.differences}


def set_variable(case: Case) -> None:
    arguments_of(case)["Environment"] = {"WANDB_RUN_ID": "stolen"}


def set_tag(case: Case) -> None:
    arguments_of(case)["Tags"] = [{"Key": "WandbRunId", "Value": "stolen"}]


def set_region(case: Case) -> None:
    arguments_of(case)["region"] = "eu-west-1"


def set_image(case: Case) -> None:
    image = {"TrainingImage": "pytorch/pytorch:2.3.0", "TrainingInputMode": "File"}
    arguments_of(case)["AlgorithmSpecification"] = image


def set_argument(case: Case) -> None:
    case.message["runSpec"]["overrides"]["args"] = ["x" * 257]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (set_variable, f"{SAGEMAKER}.Environment.WANDB_RUN_ID"),  # D12
        (set_tag, f"{SAGEMAKER}.Tags[0]"),  # D15
        (set_image, f"{SAGEMAKER}.AlgorithmSpecification.TrainingImage"),  # D17
        (set_region, f"{SAGEMAKER}.region"),  # D18
        (set_argument, "$.runSpec.overrides.args[0]"),  # D8
    ],
    ids=["D12", "D15", "D17", "D18", "D8"],
)
@settings(EXPLORATION, max_examples=20)
@given(case=cases())
def test_what_is_refused_on_purpose_is_refused_in_every_launch(
    case: Case, change: Callable[[Case], None], place: str
) -> None:
    wrong = copied(case)
    change(wrong)
    with pytest.raises(BadMessage) as caught:
        our_request(wrong)
    assert paths(caught.value) == [place]
