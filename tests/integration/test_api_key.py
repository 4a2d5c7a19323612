"""The W&B key in Secrets Manager and in Systems Manager, and a key that W&B refuses: on the wire."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.aws_server import AwsError, AwsServer, serving_aws
from worker.clients.api_key import ApiKey, KeyPlaces
from worker.clients.wandb_api import WandbApi, WandbRefused, wandb_api
from worker.errors import SettingsError, Throttled
from worker.launch.redaction import KnownSecrets
from worker.ops.metrics import Metrics
from worker.resources import worker_key
from worker.settings import load_settings

OLD, NEW = "o" * 40, "n" * 40
SECRET_ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:wandb/key-AbCdEf"
PARAMETER_ARN = "arn:aws:ssm:eu-west-1:123456789012:parameter/wandb/key"


@pytest.fixture
async def aws(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsServer]:
    async with serving_aws(monkeypatch) as server:
        yield server


async def read(source: str) -> str:
    checked = load_settings(None, {"LAUNCH_WANDB_API_KEY_SOURCE": source}).wandb_api_key_source
    return await KeyPlaces(checked, "", "https://api.wandb.ai", Path("/dev/null"), "us-east-1").read()


@pytest.mark.parametrize(
    ("source", "asked", "secret"),
    [
        ("secretsmanager:wandb/key", "wandb/key", OLD),
        ("secretsmanager:wandb/key", "wandb/key", f"{OLD}\n"),
        ("secretsmanager:wandb/key#api_key", "wandb/key", f'{{"api_key": "{OLD}", "n": 1}}'),
        (f"secretsmanager:{SECRET_ARN}", SECRET_ARN, OLD),
        (f"{SECRET_ARN}#api_key", SECRET_ARN, f'{{"api_key": "{OLD}"}}'),
        (SECRET_ARN, SECRET_ARN, OLD),
    ],
)
async def test_secrets_manager(aws: AwsServer, source: str, asked: str, secret: str) -> None:
    aws.answers["GetSecretValue"] = lambda _: {"SecretString": secret}
    assert await read(source) == OLD
    assert aws.requests("GetSecretValue") == [{"SecretId": asked}]


@pytest.mark.parametrize(
    ("source", "asked"), [("ssm:/wandb/key", "/wandb/key"), (PARAMETER_ARN, PARAMETER_ARN)]
)
async def test_systems_manager(aws: AwsServer, source: str, asked: str) -> None:
    aws.answers["GetParameter"] = lambda _: {"Parameter": {"Value": OLD}}
    assert await read(source) == OLD
    assert aws.requests("GetParameter") == [{"Name": asked, "WithDecryption": True}]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (AwsError("ResourceNotFoundException", "no such secret"), "no such secret"),
        (AwsError("AccessDeniedException", "no"), "needs secretsmanager:GetSecretValue"),
        ({"SecretString": f'{{"a": "{OLD}"}}'}, "name the key in it"),
        ({"SecretString": f"{OLD} {NEW}"}, "not a W&B API key"),
        ({"SecretBinary": base64.b64encode(b"x").decode()}, "not a W&B API key"),
    ],
)
async def test_a_secret_that_gives_no_key(aws: AwsServer, answer: Any, told: str) -> None:
    if isinstance(answer, AwsError):
        aws.fail_next("GetSecretValue", answer)
    else:
        aws.answers["GetSecretValue"] = lambda _: answer
    with pytest.raises(SettingsError, match=r"^LAUNCH_WANDB_API_KEY_SOURCE: ") as raised:
        await read("secretsmanager:wandb/key")
    assert told in str(raised.value)
    assert OLD not in str(raised.value)


@pytest.mark.parametrize("secret", ["plain", '{"other": "x"}', '{"api_key": 5}', "[1]"])
async def test_a_secret_without_the_named_key(aws: AwsServer, secret: str) -> None:
    aws.answers["GetSecretValue"] = lambda _: {"SecretString": secret}
    with pytest.raises(SettingsError, match="api_key"):
        await read("secretsmanager:wandb/key#api_key")


async def test_passing_trouble_is_no_wrong_setting(aws: AwsServer) -> None:
    aws.fail_next("GetParameter", AwsError("ThrottlingException"))
    with pytest.raises(Throttled):
        await read("ssm:/wandb/key")


class Wandb:
    """Takes one key only."""

    def __init__(self) -> None:
        self.key, self.status, self.requests, self.url = NEW, 401, 0, ""

    async def handle(self, request: web.Request) -> web.Response:
        self.requests += 1
        given = base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
        if given != f"api:{self.key}":
            return web.Response(status=self.status, text="user is not logged in")
        return web.json_response({"data": {"ok": True}})


@pytest.fixture
async def wandb() -> AsyncIterator[Wandb]:
    server = Wandb()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = "http://{}:{}".format(*runner.addresses[0][:2])
    yield server
    await runner.cleanup()


async def ask(api: WandbApi) -> None:
    """All ways to ask W&B, at once."""
    await asyncio.gather(
        *(api.graphql("Op", "", {}) for _ in range(5)),
        api.file_stream("e", "p", "r", {}),
        api.put_file(f"{api.base_url}/storage", b"x", {}),
    )


@pytest.mark.parametrize("status", [401, 403])
async def test_a_new_key_is_used_by_all_requests(wandb: Wandb, status: int) -> None:
    wandb.status = status
    reads = 0

    async def read_again() -> str:
        nonlocal reads
        reads += 1
        return NEW

    key = ApiKey(OLD, read=read_again)
    async with wandb_api(wandb.url, key, Metrics()) as api:
        await ask(api)
        assert (reads, wandb.requests, key.value) == (1, 14, NEW)
        await ask(api)
        assert (reads, wandb.requests) == (1, 21)


async def test_without_a_new_key_the_refusal_stands(wandb: Wandb) -> None:
    async def read_again() -> str:
        return OLD

    async with wandb_api(wandb.url, ApiKey(OLD, read=read_again), Metrics()) as api:
        with pytest.raises(WandbRefused, match="401"):
            await api.graphql("Op", "", {})
    assert wandb.requests == 1


async def test_a_new_key_that_is_refused_too_is_tried_once(wandb: Wandb) -> None:
    async def read_again() -> str:
        return "x" * 40

    async with wandb_api(wandb.url, ApiKey(OLD, read=read_again), Metrics()) as api:
        with pytest.raises(WandbRefused, match="401"):
            await api.graphql("Op", "", {})
    assert wandb.requests == 2


@pytest.mark.parametrize("status", [400, 404, 409])
async def test_other_refusals_say_nothing_about_the_key(wandb: Wandb, status: int) -> None:
    wandb.status = status

    async def read_again() -> str:
        raise AssertionError("read again")

    async with wandb_api(wandb.url, ApiKey(OLD, read=read_again), Metrics()) as api:
        with pytest.raises(WandbRefused):
            await api.graphql("Op", "", {})


async def test_federated_identity_alone_is_explained() -> None:
    settings = load_settings(None, {"WANDB_IDENTITY_TOKEN_FILE": "/run/token", "NETRC": "/dev/null"})
    with pytest.raises(SettingsError, match=r"^WANDB_IDENTITY_TOKEN_FILE: .* service account"):
        await worker_key(settings, "us-east-1", KnownSecrets())


@pytest.mark.parametrize("beside", [{"WANDB_API_KEY": OLD}, {"WANDB_MODE": "offline"}])
async def test_federated_identity_may_stand_beside(beside: dict[str, str]) -> None:
    given = {"WANDB_IDENTITY_TOKEN_FILE": "/run/token", "NETRC": "/dev/null", **beside}
    key = await worker_key(load_settings(None, given), "us-east-1", KnownSecrets())
    assert key.value == beside.get("WANDB_API_KEY", "")
