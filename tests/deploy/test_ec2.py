"""deploy/ec2: user data that is a script with the unit in it, and a unit that lets the worker drain."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.deploy.policies import ROOT

FOLDER = ROOT / "deploy" / "ec2"


def _rendered() -> str:
    return subprocess.run([FOLDER / "render"], capture_output=True, text=True, check=True).stdout


def test_the_user_data_is_a_script_with_unit_and_firewall_in_it(tmp_path: Path) -> None:
    rendered = _rendered()
    assert (FOLDER / "launch-worker.service").read_text() in rendered
    assert (ROOT / "deploy" / "block-build-metadata").read_text() in rendered
    assert not re.search(r"^@", rendered, re.MULTILINE)
    assert len(rendered) < 16_384, "EC2 takes no more"
    file = tmp_path / "user-data.sh"
    file.write_text(rendered)
    subprocess.run(["sh", "-n", file], check=True)


def test_the_settings_that_it_writes_exist() -> None:
    known = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"\b(LAUNCH_[A-Z_]+)=", _rendered()))
    assert {"LAUNCH_QUEUE_URL", "LAUNCH_LEDGER", "LAUNCH_REGISTRY"} <= named
    assert [name for name in named if f"#{name}=" not in known] == []


def test_the_unit_waits_for_the_worker_to_drain() -> None:
    unit, settings = (FOLDER / "launch-worker.service").read_text(), (FOLDER / "user-data.sh").read_text()
    grace = int(re.findall(r"LAUNCH_SHUTDOWN_GRACE=(\d+)s", settings)[0])
    docker = int(re.findall(r"docker stop --time (\d+)", unit)[0])
    systemd = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    assert grace < docker < systemd
    assert "RestartPreventExitStatus=2" in unit
