"""What the container finds in its environment, as wandb's SDK reads it (WANDB_LAUNCH and what follows)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from worker.launch.identity import normalise_base_url
from worker.launch.message import DOCKER_IMAGE, JOB_PATH, ImageSource, JobSource, Launch

MAX_VALUE_LENGTH = 512
"""Characters of one value (CreateTrainingJob, TrainingEnvironmentValue); W&B's SDK joins chunks of this size."""

_ALWAYS_RESERVED = re.compile(
    r"LAUNCH_.*|WANDB_LAUNCH.*|WANDB_CONFIG(_\d+)?|WANDB_(API_KEY|BASE_URL|ENTITY|PROJECT|RUN_ID)", re.DOTALL
)


_SERIALISED = re.compile(r"(WANDB_CONFIG|WANDB_LAUNCH_FILE_OVERRIDES|WANDB_ARTIFACTS)(_\d+)?")
_GIVES_WAY = frozenset({"WANDB_NAME", "WANDB_DOCKER", "WANDB_RESUME"})
"""What the worker sets only as a default: a message may choose these, as with W&B's agent. Nobody else's run or name is
touched by them."""


def container_environment(launch: Launch, *, base_url: str, image: str) -> dict[str, str]:
    """The variables the worker sets, without WANDB_API_KEY: that is added at the submit and stored nowhere."""
    environment = {
        "WANDB_BASE_URL": normalise_base_url(base_url),
        "WANDB_PROJECT": launch.run.project,
        "WANDB_ENTITY": launch.run.entity,
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": launch.run.run_id,
        "LAUNCH_ID": launch.launch_id,
    }
    optional = {
        "WANDB_DOCKER": image if _is_docker_launch(launch) else "",
        "WANDB_NAME": launch.name,
        # With a key of its own, the run belongs to that key's user, not to the author of the queue item.
        "WANDB_USERNAME": "" if launch.api_key else launch.author,
        "WANDB_SWEEP_ID": launch.sweep_id,
        "WANDB_RESUME": "allow" if launch.resume_count > 0 else "",
        "WANDB_LAUNCH_QUEUE_NAME": launch.queue,
        "WANDB_LAUNCH_QUEUE_ENTITY": launch.queue_entity,
        "WANDB_LAUNCH_TRACE_ID": launch.item_id,
    }
    environment.update({name: value for name, value in optional.items() if value})
    environment.update(_chunked("WANDB_CONFIG", launch.run_config))
    environment.update(_chunked("WANDB_LAUNCH_FILE_OVERRIDES", launch.files))
    # The SDK reads WANDB_ARTIFACTS in one piece only, so it is never chunked; limits refuses one too long.
    job = {"_wandb_job": launch.job} if launch.job else {}
    environment["WANDB_ARTIFACTS"] = json.dumps({**job, **launch.artifacts})
    return environment


def overridden_names(given: Mapping[str, str], computed: Mapping[str, str]) -> tuple[str, ...]:
    """Names in a message's Environment that would replace what the worker sets, or that only it may set.

    Repeating the worker's own value is no override."""
    return tuple(
        name
        for name, value in given.items()
        if name not in _GIVES_WAY
        and (name in computed or _ALWAYS_RESERVED.fullmatch(name))
        and computed.get(name) != value
    )


def joined_environment(given: Mapping[str, str], computed: Mapping[str, str]) -> dict[str, str]:
    """A message's variables and the worker's; of those that both set, the worker's but for a few."""
    return {**given, **computed, **{name: given[name] for name in _GIVES_WAY if name in given}}


def is_serialised(name: str) -> bool:
    """A variable that holds an override of the launch, or a piece of one, as JSON."""
    return _SERIALISED.fullmatch(name) is not None


def _is_docker_launch(launch: Launch) -> bool:
    """W&B's agent names the image for docker launches and image jobs, not for a TrainingImage of the queue."""
    source = launch.source
    return isinstance(source, JobSource) or (
        isinstance(source, ImageSource) and source.given_at in (*DOCKER_IMAGE, JOB_PATH)
    )


def _chunked(name: str, value: Mapping[str, Any]) -> dict[str, str]:
    """`name` if its JSON fits one variable, else `name_0`, `name_1`, … (wandb/sdk/launch/utils.py)."""
    text = json.dumps(value)
    if len(text) <= MAX_VALUE_LENGTH:
        return {name: text}
    starts = range(0, len(text), MAX_VALUE_LENGTH)
    return {f"{name}_{i}": text[start : start + MAX_VALUE_LENGTH] for i, start in enumerate(starts)}
