"""Search of SageMaker for training jobs, as far as it is documented: filters on tags and on the status, all to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moto.sagemaker.exceptions import ValidationError

from worker.local.aws import page_of

_HOLDS: Mapping[str, Callable[[str | None, str], bool]] = {
    "Equals": lambda actual, wanted: actual == wanted,
    "In": lambda actual, wanted: actual in wanted.split(","),
}


def search(jobs: Sequence[Any], ask: Callable[..., Any]) -> dict[str, Any]:
    """One page of moto's `jobs`, newest first as by default; `ask` has the request's parameters."""
    if ask("Resource") != "TrainingJob":
        raise ValidationError("the local stack searches training jobs only")
    filters = (ask("SearchExpression") or {}).get("Filters") or ()
    found = sorted(
        (job for job in jobs if all(_holds(job, each) for each in filters)),
        key=lambda job: job.creation_time,
        reverse=ask("SortOrder") != "Ascending",
    )
    page, more = page_of(found, ask("NextToken"), int(ask("MaxResults") or 10))
    return {"Results": [{"TrainingJob": {**job.response_object, "Tags": job.tags}} for job in page], **more}


def _holds(job: Any, each: Mapping[str, str]) -> bool:
    name, operator = each["Name"], each.get("Operator", "Equals")
    if operator not in _HOLDS:
        raise ValidationError(f"the local stack knows no operator {operator}")
    if name.startswith("Tags."):
        tags = {tag["Key"]: tag["Value"] for tag in job.tags or ()}
        return _HOLDS[operator](tags.get(name.removeprefix("Tags.")), each["Value"])
    if name == "TrainingJobStatus":
        return _HOLDS[operator](job.training_job_status, each["Value"])
    raise ValidationError(f"Unknown property name: {name}")
