"""What the documents say is true: examples are accepted, links lead somewhere, names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worker.launch.message import interpret, parse_message
from worker.launch.record import LaunchState
from worker.settings import Settings, variable_name
from worker.training.request import AccountFacts, build_request

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_example_in_the_readme_becomes_a_request() -> None:
    example = re.search(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example
    launch = interpret(parse_message(example[1]), launch_id="a" * 26, default_log_target="companion")
    request = build_request(
        launch,
        image=None,
        account=AccountFacts("123456789012", "us-east-1"),
        base_url="https://api.wandb.ai",
        deployment="default",
        macros={},
    )
    assert request["AlgorithmSpecification"]["TrainingImage"].endswith("/train:2026-11-01")
    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://acme-sm-out/vision"


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
