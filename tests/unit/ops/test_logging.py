"""Events on standard error: JSON where nobody looks, and never a secret."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from worker.ops.logging import configure_logging, get_logger

SECRET = "0123456789abcdef-wandb-key"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the process's: each test gives it back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    named = {
        name: logging.getLogger(name).level
        for name in (
            "botocore",
            "aiobotocore",
            "aiohttp.access",
            "aiobotocore.credentials",
            "aiosqlite",
            "asyncio",
        )
    }
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in named.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Captured:
    """All that was written to standard error; pytest puts its own stream there when a test's body begins."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Captured:
    return Captured(capsys)


def lines(stream: Captured | io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(**options: Any) -> None:
    configure_logging(secrets=[SECRET, "short", ""], **options)


def test_json_when_not_a_terminal(stderr: Captured) -> None:
    configured()
    with structlog.contextvars.bound_contextvars(launch_id="abc"):
        get_logger().info("launch_ready", image="train:1", tries=2)
    (line,) = lines(stderr)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "launch_ready",
        "level": "info",
        "launch_id": "abc",
        "image": "train:1",
        "tries": 2,
    }


def test_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    configured()
    get_logger().info("launch_ready", image="train:1", key=SECRET)
    assert "launch_ready" in stream.getvalue()
    assert "train:1" in stream.getvalue()
    assert SECRET not in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


def test_the_style_can_be_chosen(stderr: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(style="console")
    get_logger().info("event_one")
    assert not stderr.getvalue().startswith("{")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    configured(style="json")
    structlog.get_logger().info("event_two")
    assert [line["event"] for line in lines(stream)] == ["event_two"]


def test_the_level_is_obeyed(stderr: Captured) -> None:
    configured(level="warning")
    get_logger().info("quiet")
    get_logger().warning("loud")
    logging.getLogger("botocore").info("chatter")
    assert [line["event"] for line in lines(stderr)] == ["loud"]


@dataclass(frozen=True)
class Holder:
    key: str


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"Bearer {SECRET}; again {SECRET}",
        {"deep": [{"er": (SECRET, 1)}]},
        {SECRET: "as a name"},
        {SECRET},
        frozenset([SECRET]),
        SECRET.encode(),
        Path("/keys") / SECRET,
        Holder(SECRET),
        ValueError(f"key {SECRET} is wrong"),
        [ValueError(SECRET)],
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("style", ["json", "console"])
def test_a_secret_never_appears_in_a_field(stderr: Captured, value: object, style: str) -> None:
    configured(style=style)
    get_logger().info("event", field=value, harmless="kept")
    assert SECRET not in stderr.getvalue()
    assert "***" in stderr.getvalue()
    assert "kept" in stderr.getvalue()


def fail() -> None:
    note = f"using {SECRET}"
    raise RuntimeError(note)


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_secret_never_appears_in_a_traceback(stderr: Captured, style: str) -> None:
    configured(style=style)
    try:
        try:
            fail()
        except RuntimeError as error:
            raise ValueError("outer") from error
    except ValueError:
        get_logger().exception("it_failed")
        logging.getLogger("foreign").exception("it failed too")
    text = stderr.getvalue()
    assert text.count("RuntimeError") >= 2
    assert SECRET not in text


def test_foreign_loggers_speak_the_same_way(stderr: Captured) -> None:
    configured()
    logging.getLogger("aiohttp.server").warning(
        "bad key %s from %s", SECRET, "10.0.0.1", extra={"key": SECRET}
    )
    (line,) = lines(stderr)
    assert line["event"] == "bad key *** from 10.0.0.1"
    assert (line["level"], line["key"]) == ("warning", "***")


def test_short_words_are_no_secrets(stderr: Captured) -> None:
    configured()
    get_logger().info("shortly", text="a short text", nothing=None, number=7, yes=True)
    (line,) = lines(stderr)
    assert (line["text"], line["nothing"], line["number"], line["yes"]) == ("a short text", None, 7, True)


def test_warnings_have_their_code_and_refusals_their_own(stderr: Captured) -> None:
    configured()
    log = get_logger()
    log.warning("heartbeat_failed", error="no answer")
    log.error("launch_refused", code="LW-POLICY")
    log.exception("message_failed", exc_info=ValueError("odd"))
    log.info("job_accepted")
    logging.getLogger("aiohttp").warning("Unclosed client session")
    codes = [line.get("code") for line in lines(stderr)]
    assert codes == ["LW-HEARTBEAT-FAILED", "LW-POLICY", "LW-MESSAGE-FAILED", None, None]
