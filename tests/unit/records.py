"""Launch records for tests of what moves them; everything has a default that is valid."""

from __future__ import annotations

from typing import Any

from worker.launch.record import JobFacts, LaunchRecord, LaunchState, RunRef

WORKER = "worker-a"
OTHER = "worker-b"
REQUEST = {"TrainingJobName": "job", "Environment": {"LAUNCH_ID": "launch-1"}}


def record(launch_id: str = "launch-1", **changes: Any) -> LaunchRecord:
    """A launch whose job runs, held by WORKER."""
    values: dict[str, Any] = {
        "launch_id": launch_id,
        "state": LaunchState.ACCEPTED,
        "run": RunRef("acme", "vision", f"run-{launch_id}"),
        "owner": WORKER,
        "job_name": launch_id.replace("launch", "job"),
        "item_id": f"item-{launch_id}",
        "facts": JobFacts("InProgress", "Training"),
        **changes,
    }
    return LaunchRecord(**values)


def waiting(launch_id: str = "launch-1", **changes: Any) -> LaunchRecord:
    """A launch that is ready to be submitted."""
    request = {"TrainingJobName": launch_id.replace("launch", "job"), "Environment": {"LAUNCH_ID": launch_id}}
    defaults: dict[str, Any] = {
        "state": LaunchState.WAITING,
        "facts": JobFacts(),
        "request": request,
        "message": '{"runSpec": {}}',
    }
    return record(launch_id, **(defaults | changes))
