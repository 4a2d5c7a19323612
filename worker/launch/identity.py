"""Names that follow from a message alone, so that every delivery of it, on every worker, means the same launch."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence

from worker.launch.message import LaunchMessage

TRAINING_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", re.ASCII)
"""SageMaker's own pattern (CreateTrainingJob, TrainingJobName)."""

MAX_JOB_NAME = 63
_ID_LENGTH = 26
_MARK_LENGTH = 8


def launch_id(parts: Sequence[str]) -> str:
    """Lower-case base32 of sha256 over the parts joined by newlines, first 26 characters (130 bits)."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:_ID_LENGTH]


def identity_parts(
    message: LaunchMessage, *, base_url: str, deployment: str, queue_arn: str, message_id: str
) -> tuple[str, ...]:
    """What makes this launch the one it is: its queue item, else its own launch id, else its SQS message."""
    if message.item_id:
        return (normalise_base_url(base_url), message.entity or message.run_spec.entity, message.item_id)
    if message.launch_id:
        return _of_given(deployment, message.launch_id)
    return ("sqs", queue_arn, message_id)


def id_of_given(deployment: str, given: str) -> str:
    """The launch id of a direct launch whose message has the `launchId` `given`."""
    return launch_id(_of_given(deployment, given))


def _of_given(deployment: str, given: str) -> tuple[str, ...]:
    return ("direct", deployment, given)


def normalise_base_url(base_url: str) -> str:
    """A W&B base URL without trailing slashes; `https://host` and `https://host/` are one server."""
    return base_url.rstrip("/")


def training_job_name(requested: str, launch_id: str, attempt: int = 1) -> str:
    """The name of the training job of attempt `attempt` (from 1), always one that SageMaker accepts.

    A name that had to be changed or cut ends in `-` and 8 characters of `launch_id`, so that two launches never
    meet in it. Attempt n > 1 adds `-r<n>`. Feeding in the name of an earlier attempt 1 gives the same result."""
    if attempt < 1:
        raise ValueError(f"attempts count from 1, got {attempt}")
    retry = f"-r{attempt}" if attempt > 1 else ""
    if TRAINING_JOB_NAME.fullmatch(requested) and len(requested) + len(retry) <= MAX_JOB_NAME:
        return requested + retry
    mark = f"-{launch_id[:_MARK_LENGTH]}"
    cleaned = re.sub(r"[^a-zA-Z0-9-]+", "-", requested.removesuffix(mark)).lstrip("-")
    kept = cleaned[: MAX_JOB_NAME - len(mark) - len(retry)].rstrip("-")
    return (kept or "launch") + mark + retry
