"""Which states `launch-worker jobs --state` takes."""

from __future__ import annotations

import botocore.session
import pytest
from botocore.model import StringShape

from worker.commands.states import ENDED, JOB_STATES, chosen_states
from worker.commands.terminal import WrongUse
from worker.launch.record import LaunchState


def test_commas_repeats_and_any_case_are_taken() -> None:
    assert chosen_states(["Waiting, refused", "INPROGRESS"]) == {"waiting", "refused", "inprogress"}
    assert chosen_states([]) == frozenset()


@pytest.mark.parametrize("given", ["bogus", "waiting,bogus"])
def test_an_unknown_state_is_refused_with_those_that_there_are(given: str) -> None:
    with pytest.raises(WrongUse, match=r"no state bogus; there are intent, waiting, .*InProgress"):
        chosen_states([given])


def test_a_jobs_states_are_sagemakers() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    shapes = [model.shape_for(name) for name in ("TrainingJobStatus", "SecondaryStatus")]
    theirs = {name for shape in shapes if isinstance(shape, StringShape) for name in shape.enum}
    assert set(JOB_STATES) == theirs
    known = {state.lower() for state in (*JOB_STATES, *LaunchState)}
    assert known >= ENDED
