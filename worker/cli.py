"""The command `launch-worker`. Exit codes: 0 done, 1 failed, 2 wrong use or bad settings.

Imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from worker import __version__
from worker.commands.dlq import dlq
from worker.commands.doctor import doctor
from worker.commands.jobs import add_to
from worker.commands.rebuild import rebuild
from worker.commands.retry import retry
from worker.commands.terminal import (
    AsJson,
    Commands,
    ConfigFile,
    EnvFile,
    MessageFile,
    WrongUse,
    exit_codes,
    note,
    read_file,
    read_settings,
)
from worker.errors import Problem, SettingsError
from worker.settings import given_variables, partition_of

if TYPE_CHECKING:
    from worker.launch.redaction import KnownSecrets
    from worker.launch_config import LaunchConfig
    from worker.settings import Settings

app = typer.Typer(
    name="launch-worker",
    help="Runs W&B Launch jobs on Amazon SageMaker: launches come from SQS, logs go to W&B, exactly once.",
    cls=Commands,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


_WORKING, _SENDING, _OPERATING, _TRYING = "Work", "Send", "See, ask, stop", "Try it, without an account"
"""Groups of commands in `--help`."""


def main() -> None:
    """Run the command line."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


@app.command(rich_help_panel=_WORKING)
def run(
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Also mirror W&B launch queues into the SQS queue.")
    ] = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Take launches from the queue and supervise their jobs until SIGTERM.

    Then running jobs go to other workers at once, and builds have LAUNCH_SHUTDOWN_GRACE; a second SIGTERM ends now.
    """
    # What is loaded now is no garbage; `settle_garbage_collector` takes it from here.
    gc.set_threshold(100_000)
    import uvloop

    from worker.app import serve

    with exit_codes():
        settings, secrets = _service_settings(env_file, config)
        # A seventh less CPU than asyncio's own loop while 1,000 jobs print (`make bench SCENARIOS=thousand`).
        raise typer.Exit(uvloop.run(serve(settings, secrets, mirror=mirror)))


@app.command(rich_help_panel=_WORKING)
def mirror(config: ConfigFile = None, env_file: EnvFile = Path(".env")) -> None:
    """Move W&B launch queues into the SQS queue until SIGTERM, as a launch agent of those queues.

    Needs LAUNCH_QUEUE_URL, LAUNCH_WANDB_QUEUES, a W&B key, and LAUNCH_ENTITY unless it is the key owner's own.
    """
    from worker.mirroring import serve_mirror

    with exit_codes():
        settings, secrets = _service_settings(env_file, config)
        raise typer.Exit(asyncio.run(serve_mirror(settings, secrets)))


@app.command(rich_help_panel=_SENDING)
def validate(
    file: MessageFile,
    *,
    account: Annotated[
        str,
        typer.Option(
            help="AWS account that role names belong to. Default: LAUNCH_ASSUME_ROLE's, else 123456789012."
        ),
    ] = "",
    region: Annotated[str, typer.Option(help="AWS Region. Default: AWS_REGION, else us-east-1.")] = "",
    image_uri: Annotated[
        str | None, typer.Option(help="Stands for the image of a job or of built code.")
    ] = None,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Print the CreateTrainingJob request that a message leads to; calls nobody."""
    from worker.operating.sender import planned_request
    from worker.training.request import AccountFacts

    with exit_codes():
        if account and not re.fullmatch(r"\d{12}", account, re.ASCII):
            raise WrongUse(f"--account: {account!r} is not an AWS account; give its 12 digits")
        settings, read = read_settings(env_file, config)
        _tell_ignored(read)
        region = region or settings.aws_region or "us-east-1"
        role_account = settings.assume_role.split(":")[4] if settings.assume_role else ""
        facts = AccountFacts(account or role_account or "123456789012", region, partition_of(region))
        planned = planned_request(read_file(file), settings, account=facts, image=image_uri)
        typer.echo(json.dumps(planned.request, indent=2, ensure_ascii=False))
        _warn(planned.warnings)


@app.command(rich_help_panel=_SENDING)
def enqueue(
    file: MessageFile,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the launch in the ledger; exit 1 if it fails.")
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Check a message's form and send it to the queue.

    AWS's limits and the policy are what `validate` checks, and the worker again."""
    from worker.launch.record import LaunchRecord
    from worker.operating.sender import Sent, end_of, next_step, with_identity
    from worker.operating.sender import enqueue as send

    def on_sent(sent: Sent) -> None:
        _warn(sent.warnings)
        added = sent.given_id if body != given else ""
        if as_json:
            told = {"launchId": sent.launch_id, "messageId": sent.message_id, "run": sent.run}
            typer.echo(json.dumps({**told, "addedLaunchId": added} if added else told))
        else:
            also = f", launchId {added} was added" if added else ""
            typer.echo(f"sent launch {sent.launch_id} (run {sent.run}, SQS message {sent.message_id}{also})")

    def on_state(record: LaunchRecord) -> None:
        if not as_json:
            detail = f" {record.facts.secondary_status}" if record.facts.secondary_status else ""
            typer.echo(f"{record.state}{detail} {record.job_name}".rstrip())

    def on_silence() -> None:
        note(
            f"nothing of this launch in {settings.ledger} yet; is it the workers' LAUNCH_LEDGER, and does a worker run?"
            " `launch-worker workers` shows"
        )

    with exit_codes():
        settings, read = read_settings(env_file, config)
        _tell_ignored(read)
        given = read_file(file)
        body = with_identity(given)
        following = on_state if wait else None
        record = asyncio.run(send(body, settings, on_sent=on_sent, on_state=following, on_silence=on_silence))
        if record is not None:
            words, success = end_of(record)
            if as_json:
                end = {"state": record.state, "end": words, "success": success, "job": record.job_name}
                typer.echo(json.dumps(end))
            else:
                typer.echo(words)
            if not success:
                note(next_step(record))
            raise typer.Exit(0 if success else 1)


add_to(app, _OPERATING)
app.command(rich_help_panel=_OPERATING)(retry)
app.command(rich_help_panel=_OPERATING)(rebuild)
app.command(rich_help_panel=_OPERATING)(doctor)
app.add_typer(dlq, name="dlq", rich_help_panel=_OPERATING)


@app.command(rich_help_panel=_TRYING)
def dev(
    *,
    write_env: Annotated[
        Path | None, typer.Option("--env-file", help="Write the environment to talk to the stack here.")
    ] = None,
    message: Annotated[
        Path | None,
        typer.Option("--message", "-m", help="Write a launch message that runs on the stack here."),
    ] = None,
    aws_port: Annotated[int, typer.Option(min=0, max=65535, help="AWS; 0: any free port.")] = 4566,
    registry_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Image registry; 0: any free port.")
    ] = 5566,
    wandb_port: Annotated[int, typer.Option(min=0, max=65535, help="W&B double; 0: any free port.")] = 8566,
    executor: Annotated[
        Literal["auto", "docker", "process"], typer.Option(help="What runs training jobs.")
    ] = "auto",
) -> None:
    """Run the local stack (AWS, registry, SageMaker, W&B double) on loopback until stopped."""
    with exit_codes():
        _need_local()
        _need_folders(write_env, message)
        from worker.demo import write_example
        from worker.local.stack import LocalServices, serve_dev

        state = Path(".state").resolve()

        async def example(services: LocalServices) -> dict[str, str]:
            assert message is not None
            variables = await write_example(services, message, state)
            typer.echo(f"message       {message}")
            return variables

        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(
                serve_dev(
                    write_env,
                    aws_port=aws_port,
                    registry_port=registry_port,
                    wandb_port=wandb_port,
                    executor=executor,
                    prepare=example if message else None,
                    say=typer.echo,
                )
            )


@app.command(rich_help_panel=_TRYING)
def demo(
    executor: Annotated[
        Literal["auto", "docker", "process"], typer.Option(help="What runs the training job.")
    ] = "auto",
) -> None:
    """Send launches through the whole pipeline on the local stack and show what happens."""
    with exit_codes():
        _need_local()
        from worker.demo import run_demo

        raise typer.Exit(asyncio.run(run_demo(executor, Path(".state").resolve())))


def _need_local() -> None:
    if importlib.util.find_spec("moto") is None:
        raise SettingsError("the local stack is not installed; pip install 'launch-worker[local]'")


def _need_folders(*files: Path | None) -> None:
    """They are written once the stack runs; what is wrong is told before."""
    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise SettingsError(f"{file}: cannot be written there; name a file in a folder that exists")


def _warn(warnings: Iterable[Problem]) -> None:
    for warning in warnings:
        note(f"warning: {warning}")


def _service_settings(env_file: Path | None, config: Path | None) -> tuple[Settings, KnownSecrets]:
    """For the commands that run until they are stopped: settings, logging, and the secrets that it hides."""
    from worker.launch.redaction import KnownSecrets
    from worker.ops.logging import configure_logging, get_logger
    from worker.unknown_variables import unknown_variables

    settings, read = read_settings(env_file, config)
    key = settings.wandb_api_key
    secrets = KnownSecrets([key.get_secret_value()] if key else [])
    configure_logging(level=settings.log_level, style=settings.log_format, secrets=secrets)
    if read.path:
        get_logger().info("launch_config_read", file=str(read.path), settings=sorted(read.variables))
    if read.ignored:
        get_logger().warning(
            "launch_config_ignored", file=str(read.path), keys=list(read.ignored), why="no meaning here"
        )
    for unknown in unknown_variables(given_variables(env_file)):
        get_logger().warning(
            "setting_unknown", variable=unknown.name, why="no such setting", remedy=unknown.remedy
        )
    return settings, secrets


def _tell_ignored(read: LaunchConfig) -> None:
    if read.ignored:
        note(f"warning: {read.path}: no meaning here: {', '.join(read.ignored)}")
