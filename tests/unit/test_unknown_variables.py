"""Variables that look like settings and are none are told; what is shipped has none of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli import app
from worker.settings import Settings, variable_name
from worker.unknown_variables import UnknownVariable, unknown_variables

ROOT = Path(__file__).parents[2]
SHIPPED = [
    ROOT / ".env.example",
    ROOT / "docker-compose.yml",
    ROOT / "README.md",
    ROOT / "Makefile",
    *sorted(path for path in (ROOT / "deploy").rglob("*") if path.is_file()),
]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LAUNCH_ALLOWED_ROLE", "LAUNCH_ALLOWED_ROLES"),
        ("LAUNCH_SECUREMODE", "LAUNCH_SECURE_MODE"),
        ("LAUNCH_QUEUE", "LAUNCH_QUEUE_URL"),
        ("LAUNCH_AWS_REGION", "AWS_REGION"),
        ("LAUNCH_WANDB_API_KEY", "WANDB_API_KEY"),
        ("LAUNCH_HTTPS_PORT", "LAUNCH_HTTP_PORT"),
        ("LAUNCH_XYZZY", ""),
    ],
)
def test_a_misspelt_variable_is_told_with_the_one_that_is_meant(name: str, meant: str) -> None:
    assert unknown_variables({name: "8080", "PATH": "/bin"}) == (UnknownVariable(name, meant),)


def test_settings_macros_and_what_others_set_are_not_told() -> None:
    settings = {variable_name(name): "x" for name in Settings.model_fields if name != "macros"}
    others = {
        "LAUNCH_MACRO_ALLOWED_ROLE": "x",
        "LAUNCH_ID": "x",
        "LAUNCH_REQUIRE_DOCKER": "1",
        "LAUNCH_WORKER_SERVICE_HOST": "10.0.0.7",
        "LAUNCH_WORKER_SERVICE_PORT": "8080",
        "LAUNCH_WORKER_SERVICE_PORT_METRICS": "8080",
        "LAUNCH_WORKER_PORT": "tcp://10.0.0.7:8080",
        "LAUNCH_WORKER_PORT_8080_TCP_ADDR": "10.0.0.7",
    }
    assert unknown_variables({**settings, **others}) == ()


def test_nothing_that_is_shipped_names_an_unknown_variable() -> None:
    names = {
        name
        for path in SHIPPED
        for name in re.findall(r"\bLAUNCH_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(errors="replace"))
    }
    assert len(names) > 50
    assert unknown_variables(dict.fromkeys(names, "x")) == ()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".env").write_text("LAUNCH_MAX_INSTANCE=hunter2\nLAUNCH_LOG_FORMAT=json\n")
    return tmp_path


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("command", ["run", "mirror"])
def test_services_warn_of_both_places_and_quote_no_value(command: str) -> None:
    result = CliRunner().invoke(app, [command], env={"LAUNCH_ALLOWED_ROLE": "hunter2"})
    lines = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    told = [line for line in lines if line["event"] == "setting_unknown"]
    assert [(line["variable"], line["remedy"], line["code"]) for line in told] == [
        ("LAUNCH_ALLOWED_ROLE", "did you mean LAUNCH_ALLOWED_ROLES?", "LW-SETTING-UNKNOWN"),
        ("LAUNCH_MAX_INSTANCE", "did you mean LAUNCH_MAX_INSTANCES?", "LW-SETTING-UNKNOWN"),
    ]
    assert "hunter2" not in result.output


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("others", [{}, {"LAUNCH_SLOTS": "many"}])
def test_doctor_has_a_cross_for_each(others: dict[str, str]) -> None:
    environment = {"LAUNCH_ALLOWED_ROLE": "hunter2", "AWS_REGION": "", "WANDB_MODE": "offline", **others}
    result = CliRunner().invoke(app, ["doctor", "--json"], env=environment)
    assert result.exit_code == 1
    settings = [check for check in json.loads(result.stdout) if check["name"] == "settings"]
    assert {check["verdict"] for check in settings} == {"failed"}
    assert [check["remedy"] for check in settings if "no such setting" in check["detail"]] == [
        "did you mean LAUNCH_ALLOWED_ROLES?",
        "did you mean LAUNCH_MAX_INSTANCES?",
    ]
    assert "hunter2" not in result.stdout
