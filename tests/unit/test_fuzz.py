"""10,000 mutated messages: each is refused with reasons, or becomes a request that AWS's own validator accepts."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from botocore.validate import ParamValidator

from tests.unit.launches import ACCOUNT, BASE_URL, BUILT, EXAMPLES, message, sagemaker_args
from worker.errors import MAX_PROBLEMS, BadMessage
from worker.launch.intent import read_message
from worker.launch.message import CodeSource, JobSource
from worker.training.create_training_job import create_training_job
from worker.training.limits import check_limits
from worker.training.plan import plan_launch, read_launch
from worker.training.policy import Policy
from worker.training.request import with_api_key

SEEDS = [json.loads(path.read_text()) for path in sorted(EXAMPLES.glob("[!w]*.json"))]
BATCHES = 10
MESSAGES_A_BATCH = 1_000

JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**40, 0.5, 1e308, "", " ", "x", "0", "null", "a\nb", "\x00", "\u202e",
    "é漢字😀", "${run_id}", "${", "${image_uri}", "${no_such}", "s3://b/k", "arn:aws:iam::1:role/x", "x" * 257,
    "y" * 5_000, "aws:", "../../etc/passwd", "https://u:p@host/x.git", "placeholder-x", "\ud83d", "\udfff x",
    [], [None], ["x"] * 101, [[]], {}, {"": ""}, {"Key": "a", "Value": "b"}, {"a": {"b": {"c": []}}},
    {"x" * 600: 1}, {"k": "v" * 70_000},
]  # fmt: skip
KEYS = [
    "TrainingImage", "AlgorithmName", "InstanceGroups", "Tags", "Environment", "VpcConfig", "builder", "region",
    "profile", "EcrRepoName", "_wandb_api_key", "uri", "job", "image_uri", "options", "launchId", "queue", "priority",
    "RetryStrategy", "KeepAlivePeriodInSeconds", "ContainerArguments", "HyperParameters", "TrainingImageConfig",
    "WANDB_RUN_ID", "LAUNCH_ID", "", " ", "a b", "\ud800", "__class__", "model_config", "résumé",
]  # fmt: skip

Place = tuple[Any, Any]
"""A container and one of its keys."""


def places(value: Any) -> Iterator[Place]:
    stack = [value]
    while stack:
        container = stack.pop()
        for key in container if isinstance(container, dict) else range(len(container)):
            yield container, key
            if isinstance(container[key], dict | list):
                stack.append(container[key])


def replace_value(rng: random.Random, place: Place, _: Any) -> None:
    container, key = place
    container[key] = copy.deepcopy(rng.choice(JUNK))


def delete(_: random.Random, place: Place, __: Any) -> None:
    container, key = place
    del container[key]


def respell(rng: random.Random, place: Place, _: Any) -> None:
    container, key = place
    if isinstance(container, dict):
        spelled = [key.lower(), key.upper(), key.swapcase(), key.title(), key.replace("_", "") + "_"]
        container[rng.choice(spelled)] = container.pop(key)


def add_key(rng: random.Random, place: Place, _: Any) -> None:
    container, _key = place
    junk = copy.deepcopy(rng.choice(JUNK))
    if isinstance(container, dict):
        container[rng.choice(KEYS)] = junk
    else:
        container.insert(rng.randrange(len(container) + 1), junk)


def move(rng: random.Random, place: Place, whole: Any) -> None:
    """A copy of some other part of the message in this place."""
    container, key = place
    other, other_key = rng.choice(list(places(whole)))
    container[key] = copy.deepcopy(other[other_key])


def nest(rng: random.Random, place: Place, _: Any) -> None:
    container, key = place
    for _level in range(rng.choice([1, 2, 70])):
        container[key] = rng.choice([{"x": container[key]}, [container[key]]])


def change_text(rng: random.Random, place: Place, _: Any) -> None:
    container, key = place
    if isinstance(container[key], str):
        at = rng.randrange(len(container[key]) + 1)
        extra = rng.choice(
            ["x", " ", "_", ".", "/", ":", "@", "\n", "\x00", "é", "${run_id}", "z" * 600, "\ud800", "'"]
        )
        container[key] = container[key][:at] + extra + container[key][at:]


def change_number(rng: random.Random, place: Place, _: Any) -> None:
    container, key = place
    if isinstance(container[key], int | float):
        container[key] = rng.choice([-1, 0, 1, 3.5, 2**31, 2**70, -(2**65), 10**18, str(container[key])])


MUTATIONS: list[Callable[[random.Random, Place, Any], None]] = [
    replace_value, delete, respell, add_key, move, nest, change_text, change_number,
]  # fmt: skip


def change_body(rng: random.Random, body: str) -> str:
    """What happens to text on its way."""
    at, end = sorted(rng.randrange(len(body) + 1) for _ in range(2))
    return rng.choice(
        [
            body[:at],
            body[:at] + body[end:],
            body[:at]
            + rng.choice(["NaN", "Infinity", "1e999", "9" * 5_000, "\x00", "\ud800", "{", "]", "'"])
            + body[at:],
            body.replace("1", "NaN", 1),
            body.replace('"', "'"),
            "\ufeff" + body,
            json.dumps(body),
        ]
    )


def mutated(rng: random.Random) -> str:
    value = copy.deepcopy(rng.choice(SEEDS))
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        found = list(places(value))
        if found:
            rng.choice(MUTATIONS)(rng, rng.choice(found), value)
    if rng.random() < 0.1 and isinstance(value.get("runSpec"), dict):
        value["runSpec"] = json.dumps(value["runSpec"])
    body = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    return change_body(rng, body) if rng.random() < 0.05 else body


def outcome(body: str) -> BadMessage | dict[str, Any]:
    """What `validate` and a worker make of it; any other exception than `BadMessage` fails the test."""
    plan = partial(
        plan_launch, account=ACCOUNT, base_url=BASE_URL, deployment="default", macros={}, policy=Policy()
    )
    try:
        launch = read_launch(read_message(body), plan, launch_id="a" * 26, default_log_target="companion")
        ready = not isinstance(launch.source, JobSource | CodeSource)
        planned = plan(launch, image=None if ready else BUILT)
    except BadMessage as error:
        return error
    return with_api_key(planned.request, "k" * 40)


def check_refusal(error: BadMessage) -> None:
    assert error.problems
    for problem in error.problems:
        assert problem.path.startswith("$")
        assert problem.what.strip()
        assert problem.remedy.strip()
        assert "\n" not in str(problem), "one a line"
        str(problem).encode()
    assert len(set(error.problems)) == len(error.problems), "each problem once"


def check_request(request: dict[str, Any]) -> None:
    json.dumps(request, ensure_ascii=False).encode()
    assert not ParamValidator().validate(request, create_training_job()).has_errors()
    assert check_limits(request) == ()


@pytest.mark.timeout(30)  # what is not in proportion takes hours
@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ({"overrides": {"args": [1] * 300_000}}, {}),
        ({"overrides": {"run_config": {f"k{i}": i for i in range(60_000)}}}, {}),
        ({}, {"Environment": {f"a b{i}": "" for i in range(60_000)}}),
        ({}, {"Environment": {f"LAUNCH_{i}": "" for i in range(60_000)}}),
        ({}, {"Environment": {"a b" * 300_000: ""}}),
        ({}, {"Tags": [5] * 300_000}),
        ({}, {f"x{i}": 1 for i in range(60_000)}),
        ({}, {f"x{i}.[" * 400: 1 for i in range(400)}),
        ({}, {"ResourceConfig": {"InstanceGroups": [{"InstanceGroupName": "g"}] * 20_000}}),
        ({}, {"no_such": [[{f"k{i}": {"tags": None}} for i in range(9)] for _ in range(2_000)]}),
    ],
    ids=range(10),
)
def test_a_message_of_many_mistakes_takes_neither_long_nor_much_room(
    spec: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """The reason goes into the ledger, to W&B and into an attribute of the copy in the dead-letter queue."""
    body = json.dumps(message({**sagemaker_args(), **arguments}, **spec))
    found = outcome(body)
    assert isinstance(found, BadMessage)
    assert 1 <= len(found.problems) <= MAX_PROBLEMS
    assert len(str(found)) <= MAX_PROBLEMS * 510


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_mutated_message_is_refused_with_reasons_or_becomes_a_valid_request(batch: int) -> None:
    rng = random.Random(f"launch-worker {batch}")
    outcomes: Counter[str] = Counter()
    for number in range(MESSAGES_A_BATCH):
        body = mutated(rng)
        try:
            found = outcome(body)
            if isinstance(found, BadMessage):
                check_refusal(found)
            else:
                check_request(found)
        except Exception as error:
            error.add_note(f"message {number} of batch {batch}: {body[:3_000]!r}")
            raise
        outcomes["refused" if isinstance(found, BadMessage) else "accepted"] += 1
    assert min(outcomes["refused"], outcomes["accepted"]) > MESSAGES_A_BATCH / 10, "mutations of both kinds"
