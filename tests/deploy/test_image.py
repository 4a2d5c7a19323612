"""deploy/Dockerfile, built and run: small, no root, an init, a health check, and a worker that works in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiodocker
import pytest
import pytest_asyncio

from tests.deploy.images import (
    STATE,
    build_image,
    docker,
    ensure_bases,
    lay_out,
    one_at_a_time,
    wheelhouse,
)
from tests.e2e.bench import FAST, Bench, open_bench, open_clients
from tests.e2e.launches import numbered
from tests.e2e.process import until
from worker import __version__
from worker.launch.record import LaunchState
from worker.local.stack import running_stack

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

TRAINING_IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1"
"""A job is a process here, so nobody pulls it."""
_LIMIT = 250_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def image() -> AsyncIterator[str]:
    tag = f"launch-local/worker:{uuid.uuid4().hex[:8]}"
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE) as folder:
        async with one_at_a_time(), aiodocker.Docker() as daemon:
            await ensure_bases(daemon)
            # With all wheels: docker-compose's image then has most layers in common.
            lay_out(Path(folder), await wheelhouse("local"))
            await build_image(Path(folder), tag)
    try:
        yield tag
    finally:
        await docker("rmi", "--no-prune", tag, check=False)


async def inspected(image: str) -> dict[str, Any]:
    (found,) = json.loads(await docker("image", "inspect", image))
    given: dict[str, Any] = found
    return given


async def test_it_is_small_and_says_how_to_run_it(image: str) -> None:
    found = await inspected(image)
    assert found["Size"] < _LIMIT
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tini", "--", "launch-worker"]
    assert config["Healthcheck"]["Test"] == ["CMD", "launch-worker-health"]


async def test_nothing_that_builds_is_left_in_it(image: str) -> None:
    script = (
        "for tool in pip pip3 gcc cc make g++; do command -v $tool && exit 1; done; python3 -c 'import pip'"
    )
    said = await docker(
        "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", script, check=False
    )
    assert "No module named 'pip'" in said


async def test_every_service_that_the_worker_calls_is_known_in_it(image: str) -> None:
    """The models of other services are not in it."""
    script = (
        "import asyncio\nfrom worker.clients.aws import aws_clients, parameters_client, secrets_client\n"
        "async def main():\n async with aws_clients('us-east-1'), secrets_client('us-east-1'),"
        " parameters_client('us-east-1'):\n  print('all of them')\nasyncio.run(main())"
    )
    run = ("run", "--rm", "--network", "none", "--entrypoint", "python3", image)
    assert "all of them" in await docker(*run, "-c", script)


async def test_it_says_its_version(image: str) -> None:
    assert (await docker("run", "--rm", "--network", "none", image, "--version")).strip() == __version__


WRITABLE = {
    "fargate": ("--env", "TMPDIR=/var/lib/launch-work"),
    "builds": (
        *("--user", "1000:1000", "--volume", "/tmp"),
        *("--env", "HOME=/tmp", "--env", "LAUNCH_WORK_DIR=/tmp/launch-work"),
    ),
}
"""What may be written beside the image's own volumes; on EC2 and EKS the worker has a /tmp, too, and is the image's
user."""


async def test_workers_run_in_it_and_drain(image: str, tmp_path: Path) -> None:
    async with (
        running_stack(executor="process", stop_grace=1) as services,
        open_clients(services) as clients,
        open_bench(services, clients, TRAINING_IMAGE, tmp_path, ledger="dynamodb") as bench,
    ):
        await _run(bench, image)


async def _run(bench: Bench, image: str) -> None:
    environment = {
        **bench.services.environment,
        **FAST,
        # Nobody is to be taken for dead here, however busy this machine is.
        "LAUNCH_HEARTBEAT": "5",
        "LAUNCH_LEASE": "30",
        "LAUNCH_BUILDER": "none",
        "LAUNCH_REGISTRY": "",
        "LAUNCH_DEPLOYMENT": bench.deployment,
        "LAUNCH_QUEUE_URL": bench.queue_url,
        "LAUNCH_LEDGER": bench.ledger,
    }
    given = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
    options = ("--network", "host", "--read-only", "--cap-drop", "ALL", "--health-interval", "2s")
    names: list[str] = []
    try:
        for writable in WRITABLE.values():
            own = (*writable, "--env", f"LAUNCH_HTTP_PORT={_free_port()}")
            names.append((await docker("run", "--detach", *options, *given, *own, image)).strip())
        await _launches(bench, names)
        await asyncio.gather(*(docker("stop", "--time", "30", name) for name in names))
        codes = await docker("inspect", "--format", "{{.State.ExitCode}}", *names)
        assert codes.split() == ["0"] * len(names)
    finally:
        for name in names:
            print(await docker("logs", name))  # noqa: T201  # pytest shows it with a failure
        await docker("rm", "--force", "--volumes", *names)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def _launches(bench: Bench, names: list[str]) -> None:
    async def healthy() -> bool:
        said = await docker("inspect", "--format", "{{.State.Health.Status}}", *names)
        return said.split() == ["healthy"] * len(names)

    await until(healthy, "docker finds the workers healthy")
    cases = [bench.launch(numbered(3)) for _ in range(2 * len(names))]
    await bench.send(*cases)
    for case in cases:
        await bench.lines_in_wandb(case, 3)

    async def finished() -> bool:
        records = [await bench.record(case) for case in cases]
        return all(record is not None and record.state is LaunchState.FINISHED for record in records)

    await until(finished, "the launches are finished")
    assert "tini" in (await docker("top", names[0], "-o", "pid,args")).splitlines()[1]
