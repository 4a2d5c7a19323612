"""The command: what a newcomer and a script see; exit codes 0, 1 and 2."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import worker
from tests.fakes.aws_server import AwsError, AwsServer, serving_aws
from tests.unit.launches import EXAMPLES, IMAGE, SAGEMAKER, launch_of, message, sagemaker_args
from tests.unit.records import record
from worker.cli import app
from worker.launch.record import Failure, JobFacts, LaunchRecord, LaunchState
from worker.ledger.sqlite import open_sqlite_ledger

COMMANDS = (
    *(
        "run",
        "mirror",
        "validate",
        "enqueue",
        "dlq",
        "doctor",
        "jobs",
        "logs",
        "stop",
        "retry",
        "rebuild",
        "workers",
    ),
    *("dev", "demo"),
)


def invoke(*arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env=env)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No `.env` and no launch-config.yaml of the developer's is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def written(folder: Path, body: dict[str, Any] | str) -> str:
    file = folder / "message.json"
    file.write_text(body if isinstance(body, str) else json.dumps(body))
    return str(file)


def test_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert all(invoke(command, "--help").exit_code == 0 for command in COMMANDS)


@pytest.mark.parametrize(
    ("name", "says"),
    [("absent.env", "No such file"), ("folder.env", "not a regular file"), ("binary.env", "not UTF-8 text")],
)
def test_an_env_file_that_was_named_and_cannot_be_read_is_told(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.env").mkdir()
    (tmp_path / "binary.env").write_bytes(b"A=\x8d")
    result = invoke("jobs", "--env-file", name)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert result.stderr.startswith("LW-SETTINGS: ")
    assert name in result.stderr
    assert says in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--aws-port", "99999"), "--aws-port"),
        (("--env-file", "no/such/folder.env"), "no/such/folder.env"),
        (("--message", "."), "name a file"),
    ],
)
def test_dev_tells_what_is_wrong_before_it_starts(arguments: Sequence[str], says: str) -> None:
    result = invoke("dev", *arguments)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert says in result.stderr


def test_an_arn_in_an_error_stays_as_it_is() -> None:
    """`:secret:` is a picture to rich, as are some hundred other words."""
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:wandb"
    assert f"LW-SETTINGS: {arn}: No such file" in invoke("validate", arn).stderr


def test_without_a_command_it_explains_itself_and_that_is_wrong_use() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "validate" in result.output
    assert invoke("no-such-command").exit_code == 2
    assert invoke("validate").exit_code == 2


def test_the_module_is_the_command(elsewhere: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "--version"],
        cwd=elsewhere,
        env={"PYTHONPATH": str(Path(worker.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, worker.__version__, "")


def test_validate_needs_no_environment_and_loads_no_sdk(elsewhere: Path) -> None:
    program = (
        "import sys; sys.argv = ['launch-worker', 'validate', sys.argv[1]]\n"
        "from worker.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'wandb', 'moto', 'aiodocker'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, written(elsewhere, message())],
        cwd=elsewhere,
        env={"PYTHONPATH": str(Path(worker.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert done.stderr.strip() == "[]"


def test_the_worker_loads_no_more_than_it_needs_to_start() -> None:
    """wandb and moto take seconds; docker's library is loaded where images are built."""
    program = (
        "import sys\n"
        "import worker.cli, worker.app\n"
        "print(sorted({'wandb', 'moto', 'aiodocker'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_validate_prints_the_request_from_a_file_or_standard_input(elsewhere: Path) -> None:
    from_file = invoke("validate", written(elsewhere, message()))
    from_stdin = invoke("validate", "-", stdin=json.dumps(message()))
    assert (from_file.exit_code, from_stdin.exit_code) == (0, 0)
    assert from_file.stdout == from_stdin.stdout
    assert from_file.stderr == ""
    request = json.loads(from_file.stdout)
    assert request["Environment"]["LAUNCH_ID"]
    assert request["TrainingJobName"]


def test_the_whole_request_of_an_example_is_as_ever() -> None:
    """A difference here is a difference in what every user's jobs are."""
    result = invoke("validate", str(EXAMPLES / "docker_image_launch.json"))
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:2024-11-01"
    assert json.loads(result.stdout) == {
        "TrainingJobName": "ab12cd34",
        "RoleArn": "arn:aws:iam::123456789012:role/sm-exec",
        "AlgorithmSpecification": {
            "TrainingInputMode": "File",
            "TrainingImage": image,
            "ContainerEntrypoint": ["python", "/opt/train.py"],
            "ContainerArguments": ["--epochs", "1"],
        },
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "OutputDataConfig": {"S3OutputPath": "s3://acme-sm-out/acme/vision"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
        "Environment": {
            "LAUNCH_ID": "r7tnhdqnh6x4pti3kbxlphwqf6",
            "WANDB_API_KEY": "***",
            "WANDB_ARTIFACTS": "{}",
            "WANDB_BASE_URL": "https://api.wandb.ai",
            "WANDB_CONFIG": '{"epochs": 1}',
            "WANDB_DOCKER": image,
            "WANDB_ENTITY": "acme",
            "WANDB_LAUNCH": "True",
            "WANDB_LAUNCH_FILE_OVERRIDES": "{}",
            "WANDB_LAUNCH_TRACE_ID": "UnVuUXVldWVJdGVtOjQyMA==",
            "WANDB_NAME": "smoke-test",
            "WANDB_PROJECT": "vision",
            "WANDB_RESUME": "allow",
            "WANDB_RUN_ID": "ab12cd34",
            "WANDB_USERNAME": "jdoe",
        },
        "Tags": [
            {"Key": "WandbRunId", "Value": "ab12cd34"},
            {"Key": "LaunchId", "Value": "r7tnhdqnh6x4pti3kbxlphwqf6"},
            {"Key": "LaunchWorker", "Value": "default"},
        ],
    }


def test_validate_shows_no_secret(elsewhere: Path) -> None:
    body = message(sagemaker_args(Environment={"API_TOKEN": "hush-hush", "LR": "0.1"}))
    body["runSpec"]["_wandb_api_key"] = "0123456789abcdef0123456789abcdef01234567"
    result = invoke("validate", written(elsewhere, body), env={"WANDB_API_KEY": "f" * 40})
    assert result.exit_code == 0, result.output
    environment = json.loads(result.stdout)["Environment"]
    assert (environment["WANDB_API_KEY"], environment["API_TOKEN"], environment["LR"]) == (
        "***",
        "***",
        "0.1",
    )
    assert "hush-hush" not in result.output
    assert "0123456789abcdef" not in result.output
    assert "ffff" not in result.output


def test_validate_refuses_the_workers_own_key_in_a_message(elsewhere: Path) -> None:
    body = message(sagemaker_args(RoleArn=None), overrides={"run_config": {"key": "f" * 40}})
    result = invoke("validate", written(elsewhere, body), env={"WANDB_API_KEY": "f" * 40})
    assert (result.exit_code, result.stdout) == (1, "")
    places = [line.partition(": ")[0] for line in result.stderr.splitlines()]
    assert places == ["$.runSpec.overrides.run_config.key", f"{SAGEMAKER}.RoleArn"]
    assert "ffff" not in result.output


def test_a_message_is_read_as_utf_8_or_not_at_all(elsewhere: Path) -> None:
    text = json.dumps(message(name="caf\u00e9"), ensure_ascii=False)
    file = elsewhere / "m.json"
    file.write_bytes(text.encode("utf-8-sig"))
    marked = invoke("validate", str(file))
    assert json.loads(marked.stdout)["Environment"]["WANDB_NAME"] == "caf\u00e9"
    for encoding in ("latin-1", "utf-16"):
        file.write_bytes(text.encode(encoding))
        result = invoke("validate", str(file))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("$: is not UTF-8 text (byte ")


def test_account_region_and_image_can_be_given(elsewhere: Path) -> None:
    body = message(sagemaker_args(RoleArn="trainer"))
    file = written(elsewhere, body)
    result = invoke("validate", file, "--account", "210987654321", "--region", "cn-north-1")
    assert json.loads(result.stdout)["RoleArn"] == "arn:aws-cn:iam::210987654321:role/trainer"
    by_setting = invoke("validate", file, env={"AWS_REGION": "us-gov-west-1"})
    assert json.loads(by_setting.stdout)["RoleArn"] == "arn:aws-us-gov:iam::123456789012:role/trainer"
    code = json.loads((EXAMPLES / "direct_git_source.json").read_text())
    built = invoke("validate", written(elsewhere, code), "--image-uri", IMAGE)
    assert json.loads(built.stdout)["AlgorithmSpecification"]["TrainingImage"] == IMAGE


def test_every_problem_is_told_on_a_line_of_its_own(elsewhere: Path) -> None:
    body = message(sagemaker_args(ResourceConfig=None, StoppingCondition={"MaxRuntimeInSeconds": 0}))
    result = invoke("validate", written(elsewhere, body))
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("$.runSpec") for line in lines)
    assert all(": " in line and "; " in line for line in lines), "path: what; what to do"


def test_what_is_odd_but_runs_is_a_warning_on_standard_error(elsewhere: Path) -> None:
    body = {**message(), "options": {"log_taget": "off"}}
    result = invoke("validate", written(elsewhere, body))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["RoleArn"]
    assert result.stderr == (
        "warning: $.options.log_taget: is no option of this worker; did you mean log_target?\n"
    )


def test_problems_are_told_as_their_sender_spelled_them(elsewhere: Path) -> None:
    arguments = {**sagemaker_args(StoppingCondition=None), "Region": "mars", "stopping_condition": {"x": 1}}
    result = invoke("validate", written(elsewhere, message(arguments)))
    places = [line.partition(": ")[0].rpartition("sagemaker.")[2] for line in result.stderr.splitlines()]
    assert places == ["Region", "stopping_condition.x"]


def test_square_brackets_in_a_problem_are_no_markup(elsewhere: Path) -> None:
    body = message(sagemaker_args(**{"[bold]Tags[/bold]": []}))
    result = invoke("validate", written(elsewhere, body))
    assert result.exit_code == 1
    assert "[bold]" in result.stderr


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "\xff\xfe"])
def test_what_is_no_message_is_refused_without_a_traceback(elsewhere: Path, body: str) -> None:
    result = invoke("validate", "-", stdin=body)
    assert result.exit_code == 1
    assert result.stderr.startswith("$")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "env", "told"),
    [
        (("validate", "nowhere.json"), {}, "nowhere.json: No such file"),
        (("validate", "."), {}, "Is a directory"),
        (("validate", "-"), {"LAUNCH_SLOTS": "0"}, "LAUNCH_SLOTS"),
        (("validate", "-", "--account", "12"), {}, "--account: '12' is not an AWS account"),
        (("enqueue", "nowhere.json"), {}, "nowhere.json: No such file"),
        (("run",), {"LAUNCH_LEASE": "soon"}, "LAUNCH_LEASE"),
        (("run",), {"WANDB_API_KEY": "k" * 40}, "LAUNCH_QUEUE_URL"),
        (("run", "--config", "nowhere.yaml"), {}, "--config: nowhere.yaml: No such file"),
        (("validate", "-", "-c", "nowhere.yaml"), {}, "nowhere.yaml"),
        (("enqueue", "-", "--config", "."), {}, "Is a directory"),
    ],
)
def test_wrong_use_and_wrong_settings_exit_with_two(
    arguments: tuple[str, ...], env: dict[str, str], told: str
) -> None:
    result = invoke(*arguments, env=env)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_enqueue_checks_the_message_and_wants_a_queue(elsewhere: Path) -> None:
    wrong = invoke("enqueue", "-", stdin="{}", env={"LAUNCH_QUEUE_URL": "http://127.0.0.1:1/q"})
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("$")
    nowhere = invoke("enqueue", written(elsewhere, message()))
    assert nowhere.exit_code == 2
    assert "LAUNCH_QUEUE_URL" in nowhere.stderr


@pytest.fixture
async def queue(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsServer]:
    """SQS as `enqueue` meets it, in the environment as a shell would set it."""
    async with serving_aws(monkeypatch) as server:
        server.answers["GetQueueAttributes"] = lambda _: {
            "Attributes": {"QueueArn": "arn:aws:sqs:us-east-1:1:launches"}
        }
        server.answers["SendMessage"] = lambda _: {"MessageId": "m-1"}
        monkeypatch.setenv("LAUNCH_QUEUE_URL", "http://127.0.0.1/1/launches")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield server


async def test_enqueue_gives_an_identity_to_what_has_none(queue: AwsServer, elsewhere: Path) -> None:
    body = message()
    del body["runQueueItemId"]
    bare = written(elsewhere, body)
    for _ in range(2):
        result = await asyncio.to_thread(invoke, "enqueue", bare, "--json")
        assert result.exit_code == 0, result.output
    first, second = (json.loads(sent["MessageBody"]) for sent in queue.requests("SendMessage"))
    assert first["launchId"] != second["launchId"]
    told = json.loads(result.stdout)
    assert (told["launchId"], told["addedLaunchId"]) == (launch_of(second).launch_id, second["launchId"])
    result = await asyncio.to_thread(invoke, "enqueue", bare)
    added = json.loads(queue.requests("SendMessage")[-1]["MessageBody"])["launchId"]
    assert f"launchId {added} was added" in result.stdout
    item = written(elsewhere, message())
    assert (await asyncio.to_thread(invoke, "enqueue", item)).stderr == ""
    odd = written(elsewhere, {**message(), "options": {"colour": 1}})
    assert "warning: $.options.colour" in (await asyncio.to_thread(invoke, "enqueue", odd)).stderr
    item = written(elsewhere, message())
    result = await asyncio.to_thread(invoke, "enqueue", item)
    assert result.stdout.startswith(f"sent launch {launch_of(message()).launch_id} (run acme/vision/")
    assert json.loads(queue.requests("SendMessage")[-1]["MessageBody"]) == message()


FINISHED = record(launch_of(message()).launch_id, state=LaunchState.FINISHED, job_name="job-1")


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (replace(FINISHED, facts=JobFacts("Completed", "Completed")), (0, "The training job completed.")),
        (replace(FINISHED, facts=JobFacts("Failed", "Failed", "out of memory")), (1, "out of memory")),
        (replace(FINISHED, facts=JobFacts("Stopped", "Stopped")), (1, "stopped from outside")),
        (
            replace(FINISHED, state=LaunchState.REFUSED, failure=Failure("run", "LW-X", "no such role")),
            (1, "refused (LW-X): no such role"),
        ),
    ],
    ids=["completed", "failed", "stopped", "refused"],
)
async def test_waiting_ends_with_the_launch_and_its_exit_code(
    queue: AwsServer,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: LaunchRecord,
    expected: tuple[int, str],
) -> None:
    code, told = expected
    monkeypatch.setattr("worker.operating.sender._LOOK_EVERY", 0.01)
    monkeypatch.setenv("LAUNCH_LEDGER", f"sqlite:///{elsewhere / 'ledger.db'}")
    async with open_sqlite_ledger(elsewhere / "ledger.db") as ledger:
        await ledger.create(end)
    file = written(elsewhere, message())
    result = await asyncio.to_thread(invoke, "enqueue", file, "--wait")
    assert result.exit_code == code
    step = "dlq show" if end.failure else "logs"
    assert (f"`launch-worker {step} {end.launch_id}`" in result.stderr) == (code == 1)
    assert told in result.stdout.splitlines()[-1]
    last = (await asyncio.to_thread(invoke, "enqueue", file, "--wait", "--json")).stdout.splitlines()[-1]
    assert (json.loads(last)["success"], json.loads(last)["job"]) == (code == 0, "job-1")
    assert len(queue.requests("SendMessage")) == 2


async def test_what_cannot_be_followed_is_not_sent(
    queue: AwsServer, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = AwsError("ResourceNotFoundException", "no such table")
    queue.fail_next("GetItem", gone)
    file = written(elsewhere, message())
    for ledger in ("dynamodb://nope", "nowhere"):
        monkeypatch.setenv("LAUNCH_LEDGER", ledger)
        result = await asyncio.to_thread(invoke, "enqueue", file, "--wait")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("LW-SETTINGS")
    assert queue.requests("SendMessage") == []


async def test_waiting_for_what_nobody_takes_up_says_so_once(
    queue: AwsServer, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.operating.sender._LOOK_EVERY", 0.01)
    monkeypatch.setattr("worker.operating.sender._SILENT_AFTER", 0.05)
    address = f"sqlite:///{elsewhere / 'ledger.db'}"
    monkeypatch.setenv("LAUNCH_LEDGER", address)
    waiting = asyncio.ensure_future(
        asyncio.to_thread(invoke, "enqueue", written(elsewhere, message()), "--wait")
    )
    await asyncio.sleep(1.0)
    assert not waiting.done()
    async with open_sqlite_ledger(elsewhere / "ledger.db") as ledger:
        await ledger.create(replace(FINISHED, facts=JobFacts("Completed", "Completed")))
    result = await waiting
    assert result.exit_code == 0
    (told,) = result.stderr.splitlines()
    assert told.startswith(f"nothing of this launch in {address} yet")
    assert "`launch-worker workers`" in told


async def test_a_queue_that_cannot_be_reached_is_told_in_a_line(queue: AwsServer, elsewhere: Path) -> None:
    queue.fail_next("GetQueueAttributes", AwsError("ServiceUnavailable", status=503))
    result = await asyncio.to_thread(invoke, "enqueue", written(elsewhere, message()))
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert queue.requests("SendMessage") == []


def test_settings_come_from_a_file_and_the_environment_wins(elsewhere: Path) -> None:
    (elsewhere / "mine.env").write_text("LAUNCH_DEPLOYMENT=from-file\n")
    file = written(elsewhere, message())
    tags = {
        tag["Key"]: tag["Value"]
        for tag in json.loads(invoke("validate", file, "--env-file", "mine.env").stdout)["Tags"]
    }
    assert tags["LaunchWorker"] == "from-file"
    won = invoke("validate", file, "--env-file", "mine.env", env={"LAUNCH_DEPLOYMENT": "from-environment"})
    assert '"from-environment"' in won.stdout


CONFIG = """\
secure_mode: true
environment: {type: aws, region: eu-central-1}
max_schedulers: 2
runner: {}
"""


def test_validate_and_enqueue_take_wandbs_configuration(elsewhere: Path) -> None:
    (elsewhere / "config.yaml").write_text(CONFIG)
    file = written(elsewhere, message(overrides={"entry_point": ["sh"]}))
    refused = invoke("validate", file, "--config", "config.yaml")
    assert refused.exit_code == 1
    warning, problem = refused.stderr.splitlines()
    assert warning.startswith("warning: config.yaml: no meaning here: runner, max_schedulers")
    assert problem.startswith("$.runSpec.overrides.entry_point: ")
    won = invoke("validate", file, "-c", "config.yaml", env={"LAUNCH_SECURE_MODE": "false"})
    assert won.exit_code == 0
    assert json.loads(won.stdout)["AlgorithmSpecification"]["ContainerEntrypoint"] == ["sh"]
    sent = invoke("enqueue", file, "-c", "config.yaml")
    assert "LAUNCH_QUEUE_URL" in sent.stderr


ON_SETTINGS = [
    ("run",),
    ("mirror",),
    ("validate", "-"),
    ("enqueue", "-"),
    ("doctor",),
    ("jobs",),
    ("logs", "x"),
    ("stop", "x"),
    ("retry", "x"),
    ("rebuild",),
    ("workers",),
    ("dlq", "list"),
    ("dlq", "show", "x"),
    ("dlq", "retry", "x"),
    ("dlq", "purge", "x"),
]
"""Every command that has settings."""


@pytest.mark.parametrize("command", ON_SETTINGS, ids=" ".join)
def test_every_command_takes_its_settings_in_the_same_way(command: tuple[str, ...], elsewhere: Path) -> None:
    """From --env-file over --config, without that over W&B's own place."""
    place = elsewhere / ".config" / "wandb" / "launch-config.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("max_jobs: many")
    told = "max_jobs: is 'many'; write a whole number from -1"
    result = invoke(*command, stdin=json.dumps(message()))
    place.rename(elsewhere / "mine.yaml")
    given = invoke(*command, "--config", "mine.yaml", stdin=json.dumps(message()))
    (elsewhere / "mine.env").write_text("LAUNCH_SLOTS=none\n")
    of_file = invoke(*command, "--env-file", "mine.env", stdin=json.dumps(message()))
    if command == ("doctor",):  # it tells them as findings
        assert (result.exit_code, given.exit_code, of_file.exit_code) == (1, 1, 1)
        assert f"{place}: {told}" in result.stdout
        return
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"LW-SETTINGS: {place}: {told}\n"
    assert (given.exit_code, given.stderr) == (2, f"LW-SETTINGS: mine.yaml: {told}\n")
    assert (of_file.exit_code, of_file.stderr.startswith("LW-SETTINGS: LAUNCH_SLOTS")) == (2, True)


def test_no_command_is_left_out() -> None:
    group: Any = get_command(app)
    nested = {(name, below) for name in ("dlq",) for below in group.commands[name].commands}
    known = {(name,) for name in group.commands} - {("dlq",)} | nested
    assert {command[: 2 if command[0] == "dlq" else 1] for command in ON_SETTINGS} == known - {
        ("dev",),
        ("demo",),
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("jobs", "--al"), "No such option: --al"),
        (("job",), "No such command 'job'"),
        (("logs",), "Missing argument 'JOB'"),
        (("dlq", "lst"), "No such command 'lst'"),
        (("dev", "--aws-port", "x"), "Invalid value for '--aws-port'"),
    ],
)
def test_wrong_use_is_told_with_its_code_and_where_help_is(arguments: tuple[str, ...], told: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    usage, problem = result.stderr.splitlines()
    assert usage.startswith("Usage: ")
    assert problem.startswith(f"LW-USAGE: {told}")
    assert "--help` lists what there is" in problem


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("jobs", "--state", "bogus"), "--state: there is no state bogus; there are intent, "),
        (("jobs", "--watch", "--json"), "jobs: --watch is for people"),
        (("logs", "x", "--since", "yesterday"), "--since: 'yesterday' is neither a duration"),
        (("dlq", "retry", "x", "--all"), "dlq retry: give an ID, or --all, not both"),
        (("dlq", "retry"), "dlq retry: give an ID, or --all"),
        (("validate", "-", "--account", "12"), "--account: '12' is not an AWS account"),
    ],
)
def test_a_value_that_means_nothing_is_wrong_use(arguments: tuple[str, ...], told: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"LW-USAGE: {told}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs",),
        ("workers",),
        ("logs", "x"),
        ("stop", "x"),
        ("retry", "x"),
    ],
    ids=" ".join,
)
def test_commands_that_only_read_make_no_ledger(arguments: tuple[str, ...], elsewhere: Path) -> None:
    result = invoke(*arguments, env={"AWS_REGION": "us-east-1", "LAUNCH_LEDGER": "sqlite:///none.db"})
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        f"LW-SETTINGS: LAUNCH_LEDGER: there is no ledger at {elsewhere / 'none.db'}; "
    )
    assert not (elsewhere / "none.db").exists()


@pytest.mark.parametrize(
    ("words", "offered"), [("re", ["retry"]), ("dlq ", ["list", "purge"]), ("do", ["doctor"])]
)
def test_a_shell_completes_commands(words: str, offered: list[str]) -> None:
    asked = {
        "_LAUNCH_WORKER_COMPLETE": "complete_bash",
        "COMP_WORDS": f"launch-worker {words}",
        "COMP_CWORD": str(len(f"launch-worker {words}".split(" ")) - 1),
    }
    result = CliRunner().invoke(app, [], env=asked, prog_name="launch-worker")
    assert set(offered) <= set(result.stdout.split())


def test_the_role_that_is_assumed_says_whose_roles_are_meant(elsewhere: Path) -> None:
    file = written(elsewhere, message(sagemaker_args(RoleArn="trainer")))
    env = {"LAUNCH_ASSUME_ROLE": "arn:aws:iam::210987654321:role/launcher"}
    assert json.loads(invoke("validate", file, env=env).stdout)["RoleArn"].startswith(
        "arn:aws:iam::210987654321:"
    )


def test_validate_shows_that_containers_get_no_key(elsewhere: Path) -> None:
    result = invoke("validate", written(elsewhere, message()), env={"LAUNCH_CONTAINER_API_KEY": "none"})
    assert "WANDB_API_KEY" not in json.loads(result.stdout)["Environment"]
