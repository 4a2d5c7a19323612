"""Redaction: no secret survives, nothing else is lost, and no text makes it fail."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.launches import EXAMPLES, message, request_of, sagemaker_args
from worker.launch.redaction import redact_body, redact_request, redact_text
from worker.training.request import with_api_key

KEY = "0123456789abcdef0123456789abcdef01234567"
VARIABLES = {
    "HF_TOKEN": "hush-1",
    "db_password": "hush-2",
    "MyApiKey": "hush-3",
    "CLIENT_SECRET": "hush-4",
    "AWS_CREDENTIALS": {"a": "hush-5"},
    "PIN_KEY": 4711,
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HOME": "/opt/hf",
}
BODY = message(
    sagemaker_args(Environment=VARIABLES, Tags=[{"Key": "team", "Value": "vision"}]),
    _wandb_api_key=KEY,
    name=KEY,
)


def test_a_message_keeps_everything_but_its_secrets() -> None:
    spec = json.loads(redact_body(json.dumps(BODY)))["runSpec"]
    arguments = spec["resource_args"]["sagemaker"]
    assert (spec["_wandb_api_key"], spec["name"], spec["entity"]) == ("***", "***", "acme")
    assert arguments["Environment"] == {
        **dict.fromkeys(VARIABLES, "***"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": "/opt/hf",
    }
    assert arguments["Tags"] == [{"Key": "team", "Value": "vision"}]
    assert arguments["ResourceConfig"] == sagemaker_args()["ResourceConfig"]


@pytest.mark.parametrize(
    "path", [*sorted(EXAMPLES.glob("direct*.json")), EXAMPLES / "repo_job.json"], ids=lambda path: path.stem
)
def test_a_message_without_secrets_is_unchanged(path: Any) -> None:
    assert json.loads(redact_body(path.read_text())) == json.loads(path.read_text())


def as_text(body: dict[str, Any]) -> str:
    return json.dumps({**body, "runSpec": json.dumps(body["runSpec"])})


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(BODY),
        as_text(BODY),
        json.dumps(BODY)[:-1],
        as_text(BODY)[:-1],
        "junk " + json.dumps(BODY, indent=2),
        json.dumps(json.dumps(BODY)),
        json.dumps({"runSpec": {"_wandb_api_key": KEY}})[:-10],
        f"_wandb_api_key={KEY} HF_TOKEN=hush-1",
        "{'_wandb_api_key': '" + KEY + "'}",
    ],
)
def test_no_secret_survives_in_any_form(text: str) -> None:
    redacted = redact_body(text)
    assert "***" in redacted
    assert KEY[:30] not in redacted
    assert not any(f"hush-{i}" in redacted for i in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://jdoe:hush@git.example.com/a.git", "https://***@git.example.com/a.git"),
        ("https://ghp_hush@github.com/a/b", "https://***@github.com/a/b"),
        ("https://jdoe:hu@sh@host/a", "https://***@host/a"),
        ("ssh://git@github.com/a/b", "ssh://git@github.com/a/b"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("https://host/a@b", "https://host/a@b"),
        ("s3://b/k?X-Amz-Signature=hush&x=1", "s3://b/k?X-Amz-Signature=***&x=1"),
        ("--api-key=hush --epochs=3", "--api-key=*** --epochs=3"),
        ("--hf-token hush", "--hf-token ***"),
    ],
)
def test_secrets_inside_text(text: str, expected: str) -> None:
    assert redact_body(text) == expected
    assert json.loads(redact_body(json.dumps({"uri": text}))) == {"uri": expected}


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ({"api_key": "x"}, {"api_key": "***"}),
        ({"password": "x"}, {"password": "***"}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"arg": "--max-tokens=512"}, {"arg": "--max-tokens=512"}),
        ({"KmsKeyId": "k"}, {"KmsKeyId": "k"}),
        ({"tokenizer": "bert"}, {"tokenizer": "bert"}),
        ({"SOME_KEY": None, "USE_TOKEN": True}, {"SOME_KEY": None, "USE_TOKEN": True}),
        ({"Key": "API_TOKEN", "Value": "x"}, {"Key": "API_TOKEN", "Value": "***"}),
    ],
)
def test_which_names_are_secret(pair: dict[str, Any], expected: dict[str, Any]) -> None:
    assert json.loads(redact_body(json.dumps(pair))) == expected


@pytest.mark.parametrize(
    "text", ['{"a": "x-hu\\"sh-y", "hu\\"sh": ["hu\\"sh"]}', 'no JSON: hu"sh', '"hu\\"sh']
)
def test_given_literals_are_hidden_everywhere(text: str) -> None:
    redacted = redact_body(text, ['hu"sh', ""])
    assert "***" in redacted
    assert "sh" not in redacted


@given(st.text(), st.lists(st.text(), max_size=3))
def test_any_text_can_be_redacted(body: str, secrets: list[str]) -> None:
    assert isinstance(redact_body(body, secrets), str)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("see https://bob:pa/ssw0rd@host/x.git now", "see https://***@host/x.git now"),
        ("'https://bob:p@/?#ss@host/x' b@c", "'https://***@host/x' b@c"),
        ("https://host:8080/x.git and a@b", "https://host:8080/x.git and a@b"),
        ("ssh://git@host:22/x.git", "ssh://git@host:22/x.git"),
    ],
)
def test_a_password_with_a_slash_in_it_is_hidden(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted
    assert redact_body(json.dumps({"uri": text})) == json.dumps({"uri": redacted})


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, '{"a": "\\ud800"}', "\ud800", ""]
)
def test_hostile_bodies_can_be_redacted(body: str) -> None:
    assert isinstance(redact_body(body), str)


@pytest.mark.parametrize(
    "unit", ["\\", "-", "a", "KEY", "A:", "://", "://a:", "://a:@", '"a":"', "--token ", "=", "a ", "X-Amz-"]
)
def test_time_is_bounded_by_the_size(unit: str) -> None:
    """A quadratic pattern would take minutes for these."""
    started = time.perf_counter()
    redact_body(unit * (200_000 // len(unit)))
    assert time.perf_counter() - started < 10


def test_a_request_is_printed_without_keys_and_kept_as_it_is_q10() -> None:
    request = with_api_key(
        request_of(message(sagemaker_args(Environment={"HF_TOKEN": "hush", "A": "1"}), name=f"x {KEY}")), KEY
    )
    printed = redact_request(request)
    assert printed["Environment"]["WANDB_API_KEY"] == "***"
    assert printed["Environment"]["HF_TOKEN"] == "***"
    assert printed["Environment"]["WANDB_NAME"] == "x ***"
    assert printed["Environment"]["A"] == "1"
    assert request["Environment"]["WANDB_API_KEY"] == KEY
    assert {**printed, "Environment": None} == {**request, "Environment": None}


@pytest.mark.parametrize("text", ['{"note": "gr\\u00f6\\u00dfer"}', '{"a":1}', '{ "a" : [1,2] }'])
def test_json_in_a_variable_that_hides_nothing_stays_as_it_was_written(text: str) -> None:
    """`validate` shows what the container will find, character by character."""
    assert redact_request({"Environment": {"WANDB_CONFIG": text}})["Environment"]["WANDB_CONFIG"] == text
