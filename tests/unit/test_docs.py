"""What the documents say is true: examples are accepted, links lead somewhere, names exist."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from worker.launch.message import interpret, parse_message
from worker.launch.record import LaunchState
from worker.settings import Settings, variable_name
from worker.training.plan import plan_launch
from worker.training.policy import Policy
from worker.training.request import AccountFacts

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def planned(example: str, image: str | None = None) -> Mapping[str, Any]:
    """The request that a message of the README leads to, past all checks."""
    launch = interpret(parse_message(example), launch_id="a" * 26, default_log_target="companion")
    plan = plan_launch(
        launch,
        image=image,
        account=AccountFacts("123456789012", "us-east-1"),
        base_url="https://api.wandb.ai",
        deployment="default",
        macros={},
        policy=Policy(),
    )
    return plan.request


def test_the_examples_in_the_readme_become_requests() -> None:
    image, code, job = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    request = planned(image)
    assert request["AlgorithmSpecification"]["TrainingImage"].endswith("/train:2026-11-01")
    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://acme-sm-out/vision"
    stand_in = "123456789012.dkr.ecr.us-east-1.amazonaws.com/launch:built"
    built = planned(code, image=stand_in)
    assert built["AlgorithmSpecification"]["TrainingImage"].endswith("/launch:built")
    found = planned(job, image=stand_in)
    assert found["AlgorithmSpecification"]["ContainerArguments"] == ["--epochs", "3"]
    assert built["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python", "train.py"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_settings_that_are_named_exist(path: Path) -> None:
    named = set(re.findall(r"\bLAUNCH_[A-Z_]+[A-Z]\b(?![_*<])", path.read_text()))
    known = {variable_name(name) for name in Settings.model_fields} | {
        "LAUNCH_ID",
        "LAUNCH_RATE",
        "LAUNCH_MACRO",
    }
    assert named <= known


def test_the_concepts_name_every_state_of_the_ledger() -> None:
    states = re.findall(r"^\| `([a-z]+)` \|", (ROOT / "docs" / "concepts.md").read_text(), re.MULTILINE)
    assert states == [state.value for state in LaunchState]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_packages_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`worker/([a-z_/]+(?:\.py)?)`", path.read_text()):
        assert (ROOT / "worker" / name).exists(), name
