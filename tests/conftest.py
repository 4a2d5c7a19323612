"""What holds for every test: no test sees the developer's own accounts, and CI skips nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import MutableMapping

ENVIRON: MutableMapping[str, str] = os.environ  # noqa: TID251  # the tests' process is set up here, once


def in_ci() -> bool:
    """CI=true, as GitHub, GitLab and `.ci/run` set it."""
    return ENVIRON.get("CI") == "true"


def isolate_environment(environ: MutableMapping[str, str]) -> None:
    """Take out all that would let a test reach, or depend on, a real account (aiobotocore, tests/conftest.py).

    It is done once a process, before any fixture, so that session fixtures and subprocesses are isolated too.
    """
    for name in list(environ):
        if name.startswith(("AWS_", "WANDB_", "LAUNCH_")):
            del environ[name]
    environ["AWS_CONFIG_FILE"] = os.devnull
    environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    environ["AWS_EC2_METADATA_DISABLED"] = "true"
    environ["NETRC"] = os.devnull  # where `wandb login` keeps the key
    for name in ("NO_PROXY", "no_proxy"):
        environ[name] = "127.0.0.1,localhost"


def pytest_configure() -> None:
    isolate_environment(ENVIRON)
    # looptime asks for the main thread's loop in tests that are not async; asked before there is one, asyncio would
    # make one that nobody closes.
    asyncio.set_event_loop(None)
    # How long an example takes depends on the machine; pytest-timeout bounds each test.
    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")


LONGEST_FIRST = ("chaos", "deploy", "e2e", "integration", "localstack", "differential", "contract", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that processes that share the files (`make test`) end at about the same time.

    Outside of CI, tests marked `docker` are left out where no daemon answers; in CI they run, and fail.
    """
    items.sort(key=_turn)
    marked = [item for item in items if item.get_closest_marker("docker")]
    if not marked or in_ci() or _docker_answers():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no docker daemon answers (`make test` starts one as root)"))


def _turn(item: pytest.Item) -> int:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else 0


def _docker_answers() -> bool:
    scheme, _, address = ENVIRON.get("DOCKER_HOST", "unix:///var/run/docker.sock").partition("://")
    host, _, port = address.rstrip("/").rpartition(":")
    family, target = (socket.AF_UNIX, address) if scheme == "unix" else (socket.AF_INET, (host, int(port)))
    with socket.socket(family) as peer:
        peer.settimeout(5)
        return peer.connect_ex(target) == 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test is a failed one in CI."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module skipped as a whole, too."""
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if in_ci() and report.outcome == "skipped":
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped in CI: {reason}"
