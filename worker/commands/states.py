"""States by which `launch-worker jobs` chooses launches."""

from __future__ import annotations

from collections.abc import Iterable

from worker.commands.terminal import WrongUse
from worker.launch.record import LaunchState

JOB_STATES = (
    *("InProgress", "Completed", "Failed", "Stopping", "Stopped", "Deleting"),
    *(
        "Starting",
        "LaunchingMLInstances",
        "PreparingTrainingStack",
        "Downloading",
        "DownloadingTrainingImage",
    ),
    *("Training", "Uploading", "MaxRuntimeExceeded", "Interrupted", "MaxWaitTimeExceeded", "Updating"),
    *("Restarting", "Pending"),
)
"""SageMaker's TrainingJobStatus, then what its SecondaryStatus has besides (DescribeTrainingJob)."""
ENDED = frozenset(
    {"finished", "refused", "completed", "failed", "stopped"}
    | {"maxruntimeexceeded", "maxwaittimeexceeded", "interrupted", "deleting"}
)
"""States that launches have that are over, in lower case."""
_KNOWN = (*(state.value for state in LaunchState), *JOB_STATES)


def chosen_states(given: Iterable[str]) -> frozenset[str]:
    """In lower case; each of `given` is one or more of them, with commas between. Raises `WrongUse` for others."""
    names = [name.strip() for each in given for name in each.split(",")]
    wanted = frozenset(name.lower() for name in names if name)
    unknown = [name for name in names if name and name.lower() not in {known.lower() for known in _KNOWN}]
    if unknown:
        raise WrongUse(f"--state: there is no state {', '.join(unknown)}; there are {', '.join(_KNOWN)}")
    return wanted
