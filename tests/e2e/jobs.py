"""Launches of W&B jobs: the artifacts in the double, and the messages that name them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.bench import Bench
from tests.e2e.launches import PROJECT, LaunchCase
from worker.local.stack import ENTITY

TYPES = {"wb_type": "typedDict", "params": {"type_map": {}}}


def add_job(
    bench: Bench,
    kind: str,
    source: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    *,
    name: str = "",
    aliases: Sequence[str] = (),
) -> str:
    """Make a job, or its next version; returns its name with the alias `latest`."""
    name = name or f"job-{uuid.uuid4().hex[:8]}"
    content = {
        "_version": "v0",
        "source_type": kind,
        "source": source,
        "input_types": TYPES,
        "output_types": TYPES,
        "runtime": "3.11",
    }
    job = {"wandb-job.json": json.dumps(content).encode(), "requirements.frozen.txt": b"", **(files or {})}
    bench.services.wandb.add_artifact(ENTITY, PROJECT, name, job, aliases=aliases)
    return f"{ENTITY}/{PROJECT}/{name}:latest"


def add_code(bench: Bench, files: Mapping[str, str | bytes]) -> str:
    """Make a code artifact; returns its address as a job has it."""
    content = {name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()}
    added = bench.services.wandb.add_artifact(
        ENTITY, PROJECT, f"source-{uuid.uuid4().hex[:8]}", content, "code"
    )
    return f"wandb-artifact://_id/{added.id}"


def launch_job(
    bench: Bench,
    job: str,
    lines: Sequence[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    **options: Any,
) -> LaunchCase:
    """A launch of `job`, which prints these lines."""
    return bench.launch(lines, docker={}, job=job, overrides=dict(overrides or {}), **options)
