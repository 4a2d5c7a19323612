"""The worker's W&B API key: where it comes from, and a holder that gets a new one when W&B refuses the old."""

from __future__ import annotations

import asyncio
import contextlib
import json
import netrc
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import NoRegionError

from worker.clients.aws import AwsDenied, AwsRefused, call, parameters_client, secrets_client
from worker.clients.aws_calls import count_calls
from worker.errors import SettingsError, WorkerError
from worker.launch.redaction import KnownSecrets
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics

_SETTING = "LAUNCH_WANDB_API_KEY_SOURCE"
_PAUSE = 60.0
"""Least seconds between two readings of a key that W&B refuses: a 403 may as well be about one project."""

_log = get_logger()

ReadKey = Callable[[], Awaitable[str]]
"""The key as it is now; empty: there is none. Raises `SettingsError` and `Again`."""


class ApiKey:
    """The key, which may be another one after each `await`. Every one it has had goes into `secrets`."""

    def __init__(
        self,
        value: str,
        *,
        read: ReadKey | None = None,
        secrets: KnownSecrets | None = None,
        pause: float = _PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read`: None for a key that never changes."""
        self._value = value
        self._read = read
        self.secrets = secrets if secrets is not None else KnownSecrets()
        """All that is not to be shown, this key and its predecessors among it."""
        self.secrets.add(value)
        self._pause = pause
        self._clock = clock
        self._last_read = float("-inf")
        self._reading = asyncio.Lock()

    def __repr__(self) -> str:
        return "ApiKey(***)" if self._value else "ApiKey()"

    @property
    def value(self) -> str:
        """Empty: there is none."""
        return self._value

    async def replaced(self, refused: str) -> bool:
        """W&B refused this key: read it again, unless that was just done. True: there is another one now.

        Never raises: whoever was refused has an error to report already."""
        async with self._reading:
            if self._value != refused:
                return True  # somebody else was refused too, and has read it
            if self._read is None or self._clock() - self._last_read < self._pause:
                return False
            self._last_read = self._clock()
            try:
                value = await self._read()
            except WorkerError as error:
                _log.warning("api_key_not_read", error=str(error))
                return False
            if not value or value == refused:
                return False
            self.secrets.add(value)
            self._value = value
            _log.info("api_key_replaced")
            return True


@dataclass(frozen=True, slots=True)
class KeyPlaces:
    """Where a key may stand."""

    source: str
    """LAUNCH_WANDB_API_KEY_SOURCE; empty: the environment, else netrc."""
    environment: str
    """WANDB_API_KEY."""
    base_url: str
    """The W&B server, whose host is the `machine` of netrc."""
    netrc: Path | None
    """None: `~/.netrc`."""
    region: str
    """Of the secret, where no ARN names one."""
    metrics: Metrics | None = None
    """Where its calls are counted; None: nowhere."""

    async def read(self) -> str:
        """The key as it stands there now; empty: there is none in the environment and netrc.

        Raises `SettingsError` where it was said to be and is not, or is no key, and `Again` when AWS does not
        answer. No message quotes what was found."""
        kind, _, name = self.source.partition(":")
        if kind == "arn":
            kind, name = self.source.split(":")[2], self.source
        if kind == "secretsmanager":
            return _checked(await self._secret(name))
        if kind == "ssm":
            return _checked(await self._parameter(name))
        if kind != "netrc" and self.environment.strip():
            return _checked(self.environment, "WANDB_API_KEY")
        key = "" if kind == "environment" else await asyncio.to_thread(self._from_netrc)
        if kind and not key:
            where = "WANDB_API_KEY is not set" if kind == "environment" else f"netrc names no {self._machine}"
            raise SettingsError(f"{_SETTING}: {where}")
        return key

    @property
    def _machine(self) -> str:
        return urlsplit(self.base_url).netloc

    def _from_netrc(self) -> str:
        """As W&B's SDK reads it (wandb/sdk/lib/wbauth/wbnetrc.py): the password of the server's host and port."""
        path = (self.netrc or Path("~/.netrc")).expanduser()
        try:
            entry = netrc.netrc(path).authenticators(self._machine)
        except FileNotFoundError:
            return ""
        except netrc.NetrcParseError as error:  # its text quotes the file
            raise SettingsError(f"NETRC: {path}, line {error.lineno}: cannot be read; correct it") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"NETRC: {path}: cannot be read ({type(error).__name__})") from None
        return _checked(entry[2]) if entry and entry[2] else ""

    async def _secret(self, name: str) -> str:
        name, _, json_key = name.partition("#")
        with _explained(name, "secretsmanager:GetSecretValue"):
            async with secrets_client(self._region_of(name)) as client:
                self._count(client)
                answer = await call("GetSecretValue", lambda: client.get_secret_value(SecretId=name))
        text = answer.get("SecretString", "")
        return _member(text, json_key) if json_key or text.lstrip().startswith("{") else text

    async def _parameter(self, name: str) -> str:
        with _explained(name, "ssm:GetParameter (and kms:Decrypt on its key)"):
            async with parameters_client(self._region_of(name)) as client:
                self._count(client)
                answer = await call(
                    "GetParameter", lambda: client.get_parameter(Name=name, WithDecryption=True)
                )
        return answer["Parameter"].get("Value", "")

    def _count(self, client: Any) -> None:
        if self.metrics is not None:
            count_calls(client, self.metrics)

    def _region_of(self, name: str) -> str:
        return name.split(":")[3] if name.startswith("arn:") else self.region


@contextlib.contextmanager
def _explained(name: str, action: str) -> Iterator[None]:
    try:
        yield
    except AwsDenied as error:
        raise SettingsError(f"{_SETTING}: {name}: {error}; the worker's role needs {action}") from error
    except AwsRefused as error:
        raise SettingsError(f"{_SETTING}: {name}: {error.aws_code}: {error.aws_message}") from error
    except NoRegionError as error:
        raise SettingsError("AWS_REGION: no Region is set; set AWS_REGION") from error


def _member(text: str, name: str) -> str:
    """The value under `name` of a secret that is a JSON object, as Secrets Manager's console writes them."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise SettingsError(f"{_SETTING}: the secret is no JSON object; leave out #{name}")
    if not name:
        raise SettingsError(f"{_SETTING}: the secret is a JSON object; name the key in it: …#KEY")
    value = content.get(name)
    if not isinstance(value, str):
        raise SettingsError(f"{_SETTING}: the secret has no text under {name!r}")
    return value


def _checked(text: str, where: str = _SETTING) -> str:
    """Without the line break that files and secrets often end with."""
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{where}: what is there is not a W&B API key")
    return key
