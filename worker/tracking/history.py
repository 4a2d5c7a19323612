"""The rows of a companion's history, from what a batch holds: pure, and the same whenever they are made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.launch.console import ConsoleLine
from worker.launch.record import LaunchRecord
from worker.tracking.metric_definitions import metrics_in

Row = Mapping[str, float | int | str]
"""One row, as `run.log` would have written it."""
STATUS = "sagemaker/secondary_status"
INSTANCE = "sagemaker/instance"


def history_rows(
    record: LaunchRecord,
    first_row: int,
    lines: Sequence[ConsoleLine],
    statuses: Sequence[tuple[str, float]],
) -> list[Row]:
    """A row for each state of the job, then one for each line that has metrics; each with the time of the event itself.

    With several instances a row says whose it is: they may all print the same metric."""
    rows: list[dict[str, float | int | str]] = [{STATUS: status, "_timestamp": at} for status, at in statuses]
    for line in lines if record.metrics else ():
        if found := metrics_in(line.content, record.metrics):
            whose = {INSTANCE: line.label} if record.instance_count > 1 else {}
            rows.append({**found, **whose, "_timestamp": line.timestamp / 1000})
    return [_placed(row, first_row + index, record.accepted_at) for index, row in enumerate(rows)]


def _placed(row: dict[str, float | int | str], step: int, started: float) -> Row:
    """`_runtime` counts from when SageMaker took the job."""
    runtime = round(max(0.0, float(row["_timestamp"]) - started), 3)
    return {**row, "_runtime": runtime, "_step": step}
