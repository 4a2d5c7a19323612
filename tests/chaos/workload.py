"""What is sent, drawn from a seed, and what must become of each message. Pure."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.e2e.launches import arguments
from worker.launch.identity import launch_id
from worker.local.stack import ENTITY

PROJECT = "chaos"
DEPLOYMENT = "chaos"
ALLOWED_TYPES = "ml.m5.*"
"""The workers' policy; a launch with another instance type is refused."""
_REFUSED_SHARE = 25
"""One message that must be refused for so many that become jobs."""
_WORDS = (
    "epoch",
    "loss=0.25",
    "größe",
    "学習",
    "🚀",
    "naïve",
    "\t{tab}",
    'a "quoted" word',
    "back\\slash",
    "",
)

Fate = Literal["job", "LW-BAD-MESSAGE", "LW-POLICY"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One launch: its message, and what must become of it."""

    number: int
    at: float
    """When it is sent, seconds since the start."""
    copies: int = 1
    """How often."""
    body: str
    """`{item}` in it stands for the queue item id that W&B gives."""
    fate: Fate = "job"
    launch_id: str = ""
    """Empty: it follows from what W&B or SQS answer."""
    queue: str = ""
    """The W&B queue that it has an item in."""
    run_id: str = ""
    hosts: int = 1
    exit_code: int = 0
    own_key: str = field(default="", repr=False)
    printed: tuple[str, ...] = ()
    """Console lines of each host as its container prints them; `{host}` stands for its name."""

    @property
    def label(self) -> str:
        """How the report names it."""
        return f"launch {self.number} ({self.run_id or self.fate})"


@dataclass(frozen=True, slots=True)
class Sent:
    """A launch that was sent."""

    case: Case
    launch_id: str
    item: str = ""
    """Its queue item in W&B, if it has one."""


def workload(seed: int, launches: int, *, seconds: float, image: str, role_arn: str) -> list[Case]:
    """`launches` that become jobs, and some more that must be refused, spread over `seconds`."""
    chance = random.Random(f"{seed} workload")
    refused = launches // _REFUSED_SHARE + 1
    fates: list[Fate] = ["job"] * launches
    fates += [chance.choice(("LW-BAD-MESSAGE", "LW-POLICY")) for _ in range(refused)]
    chance.shuffle(fates)
    times = sorted(chance.uniform(0, seconds) for _ in fates)
    make = _Maker(seed, chance, image, role_arn, longest=min(21.0, seconds / 2))
    return [make.case(number, at, fate) for number, (at, fate) in enumerate(zip(times, fates, strict=True))]


@dataclass(frozen=True, slots=True)
class _Maker:
    seed: int
    chance: random.Random
    image: str
    role_arn: str
    longest: float
    """Seconds that a long launch takes."""

    def case(self, number: int, at: float, fate: Fate) -> Case:
        """A launch of a random make."""
        chance, run_id = self.chance, f"chaos-{self.seed}-{number}"
        if fate == "LW-BAD-MESSAGE":
            body = chance.choice(("no JSON, {number}", '{{"runSpec": {{"entity": "{number}"', "[{number}]"))
            return Case(number=number, at=at, body=body.format(number=number), fate=fate)
        hosts = chance.choices((1, 2, 3), (75, 18, 7))[0]
        exit_code = chance.choice((1, 3, 137)) if hosts == 1 and chance.random() < 0.12 else 0
        own_key = f"{chance.getrandbits(160):040x}" if chance.random() < 0.06 else ""
        queue = chance.choice(("gpu", "cpu", "nightly")) if chance.random() < 0.4 else ""
        bursts = list(self._bursts(run_id))
        code = "; ".join([*(_shell(lines, pause) for lines, pause in bursts), f"exit {exit_code}"])
        message = self._message(run_id, code, hosts, own_key)
        if fate == "LW-POLICY":
            resource = message["runSpec"]["resource_args"]["sagemaker"]["ResourceConfig"]
            resource["InstanceType"] = "ml.p5.48xlarge"
        if queue:
            message |= {"runQueueItemId": "{item}", "queue": queue, "entity": ENTITY}
        else:
            message["launchId"] = run_id
        return Case(
            number=number,
            at=at,
            copies=chance.choices((1, 2, 3), (85, 12, 3))[0],
            body=json.dumps(message),
            fate=fate,
            launch_id="" if queue else launch_id(("direct", DEPLOYMENT, run_id)),
            queue=queue,
            run_id=run_id,
            hosts=hosts,
            exit_code=exit_code,
            own_key=own_key,
            printed=tuple(line for lines, _ in bursts for line in lines),
        )

    def _bursts(self, run_id: str) -> Iterator[tuple[Sequence[str], float]]:
        """Lines that are printed at once (several in one millisecond), and the pause after them."""
        chance = self.chance
        length = chance.choices(("silent", "short", "usual", "long", "loud"), (3, 30, 45, 17, 5))[0]
        bursts = {"silent": 0, "short": 1, "usual": 6, "long": int(self.longest / 0.7), "loud": 3}[length]
        pause = {"silent": 0.0, "short": 0.1, "usual": 0.5, "long": 0.7, "loud": 0.3}[length]
        number = 0
        for _ in range(bursts):
            lines = []
            for _ in range(120 if length == "loud" else chance.choice((1, 1, 2, 5))):
                lines.append(self._line(run_id, number))
                number += 1
            yield lines, pause

    def _line(self, run_id: str, number: int) -> str:
        """Mostly a line of its own kind; some are the same each time, also within one millisecond."""
        kind = self.chance.random()
        if kind < 0.05:
            return f"{run_id} {{host}} waiting for data"
        if kind < 0.1:
            return "\r".join(f"{run_id} {{host}} {number}: {percent:3}%" for percent in (10, 60, 100))
        return f"{run_id} {{host}} {number} {self.chance.choice(_WORDS)}".rstrip()

    def _message(self, run_id: str, code: str, hosts: int, own_key: str) -> dict[str, Any]:
        sagemaker = {
            "RoleArn": self.role_arn,
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": hosts, "VolumeSizeInGB": 1},
            "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        }
        return {
            "runSpec": {
                "entity": ENTITY,
                "project": PROJECT,
                "run_id": run_id,
                "docker": {"docker_image": self.image},
                "overrides": {"entry_point": ["sh", "-c"], "args": arguments(code)},
                "resource": "sagemaker",
                "resource_args": {"sagemaker": sagemaker},
                **({"_wandb_api_key": own_key} if own_key else {}),
            }
        }


def _shell(lines: Sequence[str], pause: float) -> str:
    """Shell code that prints `lines` in one write and sleeps."""
    quoted = " ".join(shlex.quote(line).replace("{host}", "'\"$SM_CURRENT_HOST\"'") for line in lines)
    return f"printf '%s\\n' {quoted}; sleep {pause}"
