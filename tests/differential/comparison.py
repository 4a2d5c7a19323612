"""Two requests for one launch, and the differences that are meant, by their ids in docs/differences.md."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import Any

from tests.differential.launches import Case
from tests.differential.wandb_agent import API_KEY, wandb_request
from tests.unit.launches import ACCOUNT, BASE_URL, launch_of
from worker.launch.message import JOB_PATH, CodeSource, ImageSource, JobCode, JobSource, Launch
from worker.training.plan import plan_launch
from worker.training.policy import Policy
from worker.training.request import with_api_key


def our_launch(case: Case) -> Launch:
    """The launch once its job, if it has one, is fetched, as `worker.preparing` makes it."""
    launch = launch_of(json.dumps(case.message))
    if case.job is None or not isinstance(launch.source, JobSource):
        return launch
    code = CodeSource("https://git.example.com/acme/nlp.git", job=JobCode(name="acme/nlp/job", artifact="A"))
    source = ImageSource(case.job.image, JOB_PATH) if case.job.image else code
    return replace(launch, source=source, job_entry_point=case.job.entry_point)


def our_request(case: Case) -> dict[str, Any]:
    """What this worker submits; raises `BadMessage`."""
    launch = our_launch(case)
    plan = plan_launch(
        launch,
        image=case.built or None,
        account=ACCOUNT,
        base_url=BASE_URL,
        deployment="default",
        macros={},
        policy=Policy(),
    )
    return with_api_key(plan.request, launch.api_key.get_secret_value() if launch.api_key else API_KEY)


def their_request(case: Case) -> dict[str, Any]:
    """What W&B's agent submits, or whatever it raises."""
    return wandb_request(case.message, image=case.built, job=case.job)


def with_our_additions(theirs: dict[str, Any], launch_id: str) -> tuple[dict[str, Any], set[str]]:
    """W&B's request with what this worker adds to every one (D1), and the ids of the differences that are in every
    launch. The key is in both as they are submitted, here added at the end (D2)."""
    request = copy.deepcopy(theirs)
    request["Environment"]["LAUNCH_ID"] = launch_id
    request["Tags"] += [{"Key": "LaunchId", "Value": launch_id}, {"Key": "LaunchWorker", "Value": "default"}]
    return request, {"D1", "D2"}


def assert_same(case: Case, written: Twist | None = None) -> set[str]:
    """Both build the same request but for differences that are forgiven: their ids.

    `written`: the same launch in a way that only this worker understands; W&B's agent gets `case`."""
    ours = our_request(written.case if written else case)
    theirs, forgiven = with_our_additions(their_request(case), ours["Environment"]["LAUNCH_ID"])
    assert ours == theirs
    return forgiven | (written.differences if written else set())


@dataclass(frozen=True)
class Twist:
    """A launch as only this worker understands it, and the ids of the differences in that."""

    case: Case
    differences: set[str]
