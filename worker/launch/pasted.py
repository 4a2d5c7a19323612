"""Secrets that a message has in a place where they would be kept or shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from worker.errors import BadMessage, Problem
from worker.launch.redaction import KnownSecrets
from worker.launch.schema import LaunchMessage
from worker.launch.strict_json import json_path

_SHORTEST = 16
"""Characters; a shorter password may as well be a word."""
_LOGIN_PATH = "$.runSpec.uri"
"""A git remote may carry its login; it is kept nowhere."""


def refuse_pasted_secrets(message: LaunchMessage, secrets: KnownSecrets) -> None:
    """Raises `BadMessage` when a field holds one of `secrets`, or the message's own W&B key beside its place; that
    becomes one of `secrets`."""
    if own := message.run_spec.wandb_api_key:
        secrets.add_passing(own.get_secret_value())
    known = [secret for secret in secrets if len(secret) >= _SHORTEST]
    found = _holders(message.model_dump(by_alias=True), "$", known)
    problems = tuple(
        Problem(
            path, "holds a W&B API key or a login", "remove it: the worker hands the key to the container"
        )
        for path in found
    )
    if problems:
        raise BadMessage(problems)


def _holders(value: Any, path: str, secrets: list[str]) -> Iterator[str]:
    """Paths of texts and names with a secret in them; a `SecretStr` stands in its own place and is no text."""
    if isinstance(value, str):
        if path != _LOGIN_PATH and any(secret in value for secret in secrets):
            yield path
    elif isinstance(value, dict):
        for name, item in value.items():
            if any(secret in name for secret in secrets):
                yield path
            else:
                yield from _holders(item, json_path(path, name), secrets)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _holders(item, json_path(path, i), secrets)
