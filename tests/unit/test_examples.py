"""What `validate` prints for each example message, kept beside them: a change here is a change of every user's jobs.

`python -m tests.unit.test_examples` writes them anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.launches import BUILT, EXAMPLES
from worker.cli import app

MESSAGES = sorted(EXAMPLES.glob("[!w]*.json"))
REQUESTS = EXAMPLES / "requests"


def validated(path: Path) -> str:
    """Standard output; `--image-uri` counts only where the image is not known."""
    ready = "docker" in path.stem or "image_no" in path.stem or path.stem == "every_key"
    arguments = [] if ready else ["--image-uri", BUILT]
    result = CliRunner().invoke(app, ["validate", str(path), *arguments])
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_the_request_of_an_example_is_as_ever(path: Path) -> None:
    assert json.loads(validated(path)) == json.loads((REQUESTS / path.name).read_text())


def test_every_example_has_its_request() -> None:
    assert {path.name for path in REQUESTS.iterdir()} == {path.name for path in MESSAGES}


if __name__ == "__main__":
    for message in MESSAGES:
        (REQUESTS / message.name).write_text(validated(message))
