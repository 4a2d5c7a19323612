"""`launch-worker demo`: one launch through the whole pipeline on the local stack, for a newcomer to watch.

The worker runs as a process of its own, exactly as in production; what is shown are its own log events and what the
W&B double has received. The user's AWS and W&B variables are not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.errors import SettingsError
from worker.local.images import ImageNotBuilt, ensure_python_image
from worker.local.stack import ENTITY, LocalServices, running_stack

_LIMIT = 120.0
"""Seconds after which the demo gives up."""
_SHELL_TRAINING = (
    'echo "training on $SM_CURRENT_HOST"; for epoch in 1 2 3 4 5; do sleep 0.5;'
    ' echo "epoch $epoch loss=0.$((60 / epoch))"; done; echo "saved the model"'
)
_PYTHON_TRAINING = """\
import argparse, os, time

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
epochs = parser.parse_args().epochs
print(f"training on {os.environ['SM_CURRENT_HOST']} with {os.environ['WANDB_CONFIG']}", flush=True)
for epoch in range(1, epochs + 1):
    time.sleep(0.4)
    print(f"epoch {epoch} loss={0.6 / epoch:.2f}", flush=True)
print("saved the model", flush=True)
"""
_HOST_STYLES = ("cyan", "magenta", "green", "yellow")


class _Screen:
    """What the newcomer sees: a clock, a stage, a sentence."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()

    def stage(self, name: str, sentence: str, style: str = "bold blue") -> None:
        elapsed = time.monotonic() - self._started
        self.console.print(Text.assemble((f"{elapsed:6.1f}s  ", "dim"), (f"{name:<10}", style), sentence))

    def log_line(self, label: str, content: str) -> None:
        style = _HOST_STYLES[sum(map(ord, label)) % len(_HOST_STYLES)]
        self.console.print(Text.assemble(" " * 9, (f"{label:<10}", style), content))


async def run_demo(executor: Literal["auto", "docker", "process"], state: Path) -> int:
    """Run the demo; returns the command's exit code. `state`: an absolute folder where downloads are kept."""
    screen = _Screen()
    screen.stage("stack", "starting AWS (moto), SageMaker, a registry and W&B on loopback …")
    async with running_stack(executor=executor, stop_grace=1.0) as services:
        for sentence in services.missing:
            screen.stage("note", sentence, "bold yellow")
        sources, base_image = await _prepare(services, state, screen)
        with tempfile.TemporaryDirectory(prefix="launch-demo-") as folder:
            environment = {**_environment(services, Path(folder)), "LAUNCH_BASE_IMAGE": base_image}
            async with _worker(environment) as worker:
                try:
                    async with asyncio.timeout(_LIMIT):
                        success = await _watch(services, worker, environment, sources, screen)
                except TimeoutError:
                    screen.stage("failed", f"no end after {_LIMIT:.0f} s", "bold red")
                    return 1
    if success:
        screen.stage(
            "done", "everything is stopped again; next: `make dev`, and README.md, By hand", "bold green"
        )
    return 0 if success else 1


async def write_example(services: LocalServices, file: Path, state: Path) -> dict[str, str]:
    """Write a launch message that runs on the stack, the demo's, to `file`; returns variables that its worker needs.
    `state`: as for `run_demo`. Raises `SettingsError`."""
    sources, base_image = await _prepare(services, state, _Screen())
    message = json.loads(_message(sources[0], 1, services.role_arn))
    # Without a name of its own, so that `enqueue` makes each sending a launch of its own.
    del message["launchId"]
    await asyncio.to_thread(file.write_text, json.dumps(message, indent=2) + "\n", "utf-8")
    return {"LAUNCH_BASE_IMAGE": base_image} if base_image else {}


async def _prepare(services: LocalServices, state: Path, screen: _Screen) -> tuple[list[dict[str, Any]], str]:
    """What the launches run, as the message's fields for it, and the base image of what is built.

    With docker and a registry: code in S3, launched twice; otherwise a ready image, whose command is a process."""
    if services.docker is None or services.ecr is None or services.executor.name != "docker":
        screen.stage(
            "stack", "ready; without docker nothing is built, and the training job is a process here"
        )
        command = {"entry_point": ["sh", "-c"], "args": [_SHELL_TRAINING]}
        image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/launch-dev:demo"
        return [{"docker": {"docker_image": image}, "overrides": command}], ""
    try:
        base_image = await ensure_python_image(services.docker, state)
    except ImageNotBuilt as error:
        raise SettingsError(f"the demo's base image cannot be made: {error}") from error
    base_image = await services.ecr.seed_image(services.docker, base_image, services.bucket, "base")
    session = services.aws.session()
    async with session.client("s3", endpoint_url=services.aws_endpoint) as s3:
        await s3.put_object(Bucket=services.bucket, Key="src/train.tar.gz", Body=_archive())
    uri = f"s3://{services.bucket}/src/train.tar.gz"
    screen.stage("stack", f"ready; your code is one file, train.py, in {uri}")
    command = {"entry_point": ["python", "train.py"], "args": ["--epochs", "5"]}
    return [{"uri": uri, "overrides": command}] * 2, base_image


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        content = _PYTHON_TRAINING.encode()
        member = tarfile.TarInfo("train.py")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _environment(services: LocalServices, folder: Path) -> dict[str, str]:
    """The worker's whole environment: nothing of the user's own AWS or W&B account is in it."""
    return {
        **services.environment,
        "HOME": str(folder),
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "LAUNCH_LEDGER": f"sqlite:///{folder}/ledger.db",
        "LAUNCH_HTTP_PORT": "0",
        "LAUNCH_LOG_FORMAT": "json",
        "LAUNCH_BUILD_NETWORK": "none",  # the demo's code has no requirements to download
        # The local services answer at once and share no quota with anybody.
        "LAUNCH_LOG_INTERVAL": "0.3",
        "LAUNCH_LOG_QUIET": "1.5",
        "LAUNCH_STATUS_INTERVAL": "0.5",
        "LAUNCH_RECEIVE_WAIT": "1",
        "LAUNCH_RATE_LIST_TRAINING_JOBS": "10",
        "LAUNCH_RATE_FILTER_LOG_EVENTS": "20",
        "LAUNCH_RATE_CREATE_TRAINING_JOB": "10",
    }


@contextlib.asynccontextmanager
async def _worker(environment: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The worker's process; stopped by SIGTERM at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", "run", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(30):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()


def _message(source: Mapping[str, Any], number: int, role_arn: str) -> str:
    overrides = {**source["overrides"], "run_config": {"lr": 0.01 * number}}
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 10}
    arguments = {
        "RoleArn": role_arn,
        "ResourceConfig": resources,
        "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 300},
    }
    spec = {
        **source,
        "overrides": overrides,
        "entity": ENTITY,
        "project": "demo",
        "name": f"launch {number}",
        "resource": "sagemaker",
        "resource_args": {"sagemaker": arguments},
    }
    return json.dumps({"launchId": f"demo-{number}-{time.time_ns()}", "runSpec": spec})


async def _watch(
    services: LocalServices,
    worker: asyncio.subprocess.Process,
    environment: Mapping[str, str],
    sources: Sequence[Mapping[str, Any]],
    screen: _Screen,
) -> bool:
    """Send one launch after the other, show what happens, and at the end what is in W&B."""
    assert worker.stderr is not None
    shown = _ConsoleTail(services, screen)
    ends: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        tail = tasks.create_task(shown.follow(), name="show log lines")
        async for raw in worker.stderr:
            event = _parse(raw)
            _show(event, screen)
            if event.get("event") == "worker_started" or "end" in event:
                ends += [event["end"]] if "end" in event else []
                shown.show_new()
                if len(ends) == len(sources):
                    break
                message = _message(sources[len(ends)], len(ends) + 1, services.role_arn)
                screen.stage("send", await _enqueue(message, environment))
            elif event.get("event") == "launch_refused":
                break
        tail.cancel()
    _show_results(services, screen)
    return len(ends) == len(sources) and set(ends) == {"completed"}


async def _enqueue(message: str, environment: Mapping[str, str]) -> str:
    """`launch-worker enqueue -`; returns what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "enqueue", "-"),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate(message.encode())
    return said.decode().strip()


class _ConsoleTail:
    """Shows console lines as the W&B double receives them."""

    def __init__(self, services: LocalServices, screen: _Screen) -> None:
        self._wandb = services.wandb
        self._screen = screen
        self._shown: dict[object, int] = {}

    async def follow(self) -> None:
        while True:
            self.show_new()
            await asyncio.sleep(0.1)

    def show_new(self) -> None:
        for key, run in self._wandb.runs.items():
            lines = run.console()
            for line in lines[self._shown.get(key, 0) :]:
                fields = json.loads(line)
                self._screen.log_line(fields["label"], fields["content"])
            self._shown[key] = len(lines)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        event = json.loads(raw)
    except ValueError:
        return {"event": "output", "level": "error", "text": raw.decode(errors="replace").rstrip()}
    return event if isinstance(event, dict) else {}


def _show(event: Mapping[str, Any], screen: _Screen) -> None:
    get = event.get
    stages = {
        "worker_started": ("worker", f"started as a process of its own, {get('worker')}"),
        "launch_received": ("intake", "message received under a lease; intent written to the ledger"),
        "source_fetched": ("source", f"{get('origin')} fetched, {str(get('content_id'))[:20]}…"),
        "build_warning": ("note", str(get("what"))),
        "build_started": ("build", f"image {str(get('tag'))[:12]}…, {get('files')} file(s) in the context"),
        "image_ready": (
            "image",
            f"{str(get('digest'))[:19]}… "
            + ("built and pushed" if get("built") else "was in the registry already"),
        ),
        "launch_ready": ("request", f"CreateTrainingJob request built for {get('image')}"),
        "job_accepted": (
            "submit",
            f"SageMaker accepted the training job {get('training_job')} ({get('how')})",
        ),
        "companion_opened": ("W&B", f"companion run {get('url')}"),
        "job_state": ("SageMaker", f"{get('status')} / {get('secondary_status')}"),
        "job_finished": ("end", f"{get('end')}: {get('reason')} {get('lines')} log lines delivered"),
        "launch_refused": ("refused", str(get("reason"))),
        "output": ("worker", str(get("text"))),
    }
    name, sentence = stages.get(str(get("event")), ("", ""))
    if name:
        screen.stage(name, sentence)
    elif get("level") in ("warning", "error"):
        screen.stage(
            "warning", f"{get('code')}: {get('error') or get('reason') or get('what')}", "bold yellow"
        )


def _show_results(services: LocalServices, screen: _Screen) -> None:
    for (entity, project, name), run in list(services.wandb.runs.items())[:1]:
        table = Table(title=f"In W&B now: {entity}/{project}/{name} ({run.state})", title_justify="left")
        table.add_column("fact", no_wrap=True)
        table.add_column("value", overflow="fold")
        for key, value in run.config.items():
            table.add_row(key, str(value["value"] if isinstance(value, dict) and "value" in value else value))
        for key, value in run.summary.items():
            table.add_row(key, str(value))
        table.add_row("console", f"{len(run.console())} lines")
        table.add_row("files", ", ".join(run.uploaded))
        screen.console.print(table)
