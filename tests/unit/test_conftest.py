"""The rules that tests/conftest.py enforces, shown on a small test run of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from botocore.session import get_session

from tests.conftest import isolate_environment

CONFTEST = Path(__file__).parents[1] / "conftest.py"

SKIPS = """
import pytest

@pytest.mark.skip(reason="not today")
def test_skipped():
    assert False

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    assert False
"""
SKIPS_MODULE = """
import pytest

pytest.skip("the whole module", allow_module_level=True)
"""
NEEDS_DOCKER = """
import pytest

@pytest.mark.docker
def test_docker():
    pass
"""


def run_pytest(folder: Path, source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "test_inner.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    docker: needs a running dockerd\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(folder)]
    variables = {"PATH": os.defpath, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_skips_are_allowed_outside_of_ci(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, SKIPS)
    assert result.returncode == 0, result.stdout
    assert "1 skipped, 1 xfailed" in result.stdout


def test_ci_fails_on_skip_and_xfail(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, SKIPS, CI="true")
    assert result.returncode == 1
    assert "1 failed, 1 error" in result.stdout
    assert "nothing may be skipped in CI: Skipped: not today" in result.stdout


def test_ci_fails_on_a_skipped_module(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, SKIPS_MODULE).returncode == 5  # no tests ran
    result = run_pytest(tmp_path, SKIPS_MODULE, CI="true")
    assert result.returncode == 2
    assert "nothing may be skipped in CI: Skipped: the whole module" in result.stdout


def test_docker_tests_are_left_out_only_outside_of_ci(tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/docker.sock"
    assert "1 skipped" in run_pytest(tmp_path, NEEDS_DOCKER, DOCKER_HOST=nowhere).stdout
    assert "1 passed" in run_pytest(tmp_path, NEEDS_DOCKER, DOCKER_HOST=nowhere, CI="true").stdout


def test_isolation_leaves_no_account_behind() -> None:
    environ = {
        "AWS_PROFILE": "production",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "WANDB_API_KEY": "secret",
        "LAUNCH_QUEUE_URL": "https://queue",
        "PATH": "/bin",
    }
    isolate_environment(environ)
    assert environ["PATH"] == "/bin"
    assert not {"AWS_PROFILE", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "LAUNCH_QUEUE_URL"} & environ.keys()


def test_this_process_has_no_aws_account() -> None:
    session = get_session()
    assert session.available_profiles == []
    assert session.get_config_variable("region") is None
    assert session.get_credentials() is None
