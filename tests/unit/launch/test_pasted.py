"""Secrets in the wrong place of a message are refused before anything of it is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.launches import message, paths, sagemaker_args
from worker.errors import BadMessage
from worker.launch.intent import intent_record
from worker.launch.message import parse_message
from worker.launch.pasted import refuse_pasted_secrets
from worker.launch.redaction import KnownSecrets

OWN, WORKERS = "0" * 40, "w" * 40


def refused(body: dict[str, Any]) -> list[str]:
    try:
        refuse_pasted_secrets(parse_message(json.dumps(body)), KnownSecrets([WORKERS, "short"]))
    except BadMessage as error:
        assert OWN not in str(error)
        assert WORKERS not in str(error)
        return paths(error)
    return []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, []),
        ({"_wandb_api_key": OWN}, []),
        ({"_wandb_api_key": WORKERS}, []),
        ({"name": "short"}, []),
        ({"name": OWN}, []),
        ({"name": f"a {OWN}", "_wandb_api_key": OWN}, ["$.runSpec.name"]),
        ({"entity": WORKERS}, ["$.runSpec.entity"]),
        ({"overrides": {"args": ["a", f"--k={WORKERS}"]}}, ["$.runSpec.overrides.args[1]"]),
        ({"overrides": {"run_config": {"a": {WORKERS: 1}}}}, ["$.runSpec.overrides.run_config.a"]),
        ({"uri": f"https://ada:{WORKERS}@git.example.com/a.git", "docker": {}}, []),
    ],
)
def test_where_a_secret_may_not_stand(spec: dict[str, Any], expected: list[str]) -> None:
    assert refused(message(**spec)) == expected


def test_all_places_at_once() -> None:
    body = message(sagemaker_args(Environment={"A": OWN, "B": "x"}), name=OWN, _wandb_api_key=OWN)
    assert refused(body) == [
        "$.runSpec.name",
        "$.runSpec.resource_args.sagemaker.Environment.A",
    ]


def test_a_launchs_own_key_becomes_a_known_secret() -> None:
    secrets = KnownSecrets()
    refuse_pasted_secrets(parse_message(json.dumps(message(_wandb_api_key=OWN))), secrets)
    assert list(secrets) == [OWN]


@pytest.mark.parametrize("name", ["entity", "project", "run_id"])
@pytest.mark.parametrize("own", [True, False])
def test_the_first_record_holds_no_secret_in_the_runs_name(name: str, own: bool) -> None:
    secret = OWN if own else WORKERS
    spec: dict[str, Any] = {name: secret, **({"_wandb_api_key": OWN} if own else {})}
    body = json.dumps(message(**spec))
    record = intent_record(
        parse_message(body),
        body,
        launch_id="l" * 26,
        message_id="m-1",
        owner="w1",
        secrets=[WORKERS],
        now=0.0,
    )
    assert secret not in repr(record)
    assert getattr(record.run, name) == "***"
