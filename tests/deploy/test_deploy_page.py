"""docs/deploy.md done as it says, with stand-ins for what reaches AWS, docker and a cluster: its commands are ones that
AWS has, with what the templates ask for. EKS has a module of its own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from tests.conftest import ENVIRON
from tests.deploy.page import blocks_of, stand_in, wrong_options
from tests.deploy.policies import ROOT
from tests.deploy.template import load

TEMPLATES = ROOT / "deploy" / "cloudformation"
_NOTE = r"""call=$(printf '%s\037' "${0##*/}" "$@"); printf '%s\n' "$call" >>calls"""
"""A stand-in notes how it was called: with one write, for both ends of a pipe run at once."""
_ANSWER = r"""
case $2 in
describe-stacks) value=${*#*OutputKey==\'}; echo "the-${value%%\'*}" ;;
get-queue-url) echo https://queue ;;
*) if [ -f "$2" ]; then head -n 1 "$2"; [ "$(wc -l <"$2")" -le 1 ] || sed -i 1d "$2"; fi ;;
esac
"""
"""What `aws` says: the name of the output that it was asked for, or the next line of a file named after the command,
the last one for ever."""
OF_THE_TOOL = {("cloudformation", "deploy"), ("ecr", "get-login-password")}
"""Commands of AWS's command line that are no operation of the service."""


def _calls(folder: Path, block: str, answers: Mapping[str, Sequence[str]] | None = None) -> list[list[str]]:
    """Run a block; returns the commands that it gave to the stand-ins, with their arguments. `answers`: what `aws` says
    to a command, call by call."""
    (folder / "bin").mkdir(parents=True)
    for asked, lines in (answers or {}).items():
        (folder / asked).write_text("".join(f"{line}\n" for line in lines))
    for name in ("aws", "docker", "kubectl", "launch-worker", "sleep"):
        stand_in(folder / "bin" / name, f"{_NOTE}\n{_ANSWER if name == 'aws' else ''}")
    environment = {"PATH": f"{folder / 'bin'}:{ENVIRON['PATH']}", "WANDB_API_KEY": "a-key", "CLUSTER": "acme"}
    command = ["sh", "-euc", block]
    ended = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=30
    )
    assert ended.returncode == 0, ended.stderr
    return [line.split("\x1f")[:-1] for line in (folder / "calls").read_text().splitlines()]


def _wrong(call: Sequence[str]) -> str:
    """What AWS's command line would not take; empty: nothing."""
    _, service, command, *rest = call
    options = {word.removeprefix("--").removeprefix("no-") for word in rest if word.startswith("--")}
    if (service, command) in OF_THE_TOOL or command == "wait":
        return ""
    return wrong_options(service, command, options)


@pytest.mark.parametrize("section", ["The image", "CloudFormation", "Upgrade", "Uninstall"])
def test_the_commands_are_ones_that_there_are(tmp_path: Path, section: str) -> None:
    blocks = blocks_of(section)
    assert blocks
    for number, block in enumerate(blocks):
        for call in _calls(tmp_path / str(number), block):
            assert call[0] != "aws" or _wrong(call) == "", call
            assert all(call), call


def test_the_image_is_built_for_the_machines_that_run_it_and_pushed(tmp_path: Path) -> None:
    blocks = blocks_of("The image")
    build, *pushing = [
        call for number, block in enumerate(blocks) for call in _calls(tmp_path / str(number), block)
    ]
    assert build[:4] == ["docker", "build", "--platform", "linux/amd64"]
    for name in ("fargate.yaml", "mirror.yaml"):
        assert load(TEMPLATES / name)["Parameters"]["Architecture"]["Default"] == "X86_64"
    assert pushing[0][:3] == ["aws", "ecr", "create-repository"]
    assert pushing[-1] == ["docker", "push", pushing[-2][-1]]


def test_a_stack_gets_what_it_asks_for(tmp_path: Path) -> None:
    """The key is there before the stack that names it; then the worker, then a launch."""
    blocks = blocks_of("CloudFormation")
    calls = [call for number, block in enumerate(blocks) for call in _calls(tmp_path / str(number), block)]
    assert calls[0][:3] == ["aws", "secretsmanager", "create-secret"]
    assert calls[0][-1] == "a-key", "as plain text"
    deployed = [call for call in calls if call[2] == "deploy"]
    for call in deployed:
        template = load(ROOT / call[call.index("--template-file") + 1])["Parameters"]
        given = {
            word.partition("=")[0] for word in call[call.index("--parameter-overrides") + 1 :] if "=" in word
        }
        assert {name for name, item in template.items() if "Default" not in item} <= given <= template.keys()
    assert len(deployed) == 2
    assert calls[-1][:3] == ["launch-worker", "enqueue", "launch.json"]


@pytest.mark.parametrize("there", [["i-1\ti-2", "i-1\ti-2", "i-1", ""], [""]])
def test_instances_are_gone_before_their_stack(tmp_path: Path, there: list[str]) -> None:
    """Their protection outlives the capacity provider. A group that has none already is no mistake."""
    (block, *_) = blocks_of("Uninstall")
    outputs = load(TEMPLATES / "builds.yaml")["Outputs"]
    assert set(re.findall(r"\$\(output (\w+)\)", block)) == outputs.keys()
    calls = _calls(tmp_path, block, {"describe-auto-scaling-groups": there})
    named = [call[2] if call[0] == "aws" else call[0] for call in calls]
    unprotected = [call for call in calls if "set-instance-protection" in call]
    assert [call[-2:] for call in unprotected] == ([["i-1", "i-2"]] if there[0] else [])
    assert named.index("update-auto-scaling-group") < named.index("describe-auto-scaling-groups")
    assert named.count("describe-auto-scaling-groups") == max(2, len(there))
    assert named[-2:] == ["delete-stack", "wait"]


def test_pods_leave_no_association_behind(tmp_path: Path) -> None:
    (block,) = [block for block in blocks_of("Uninstall") if "kubectl" in block]
    calls = _calls(tmp_path, block, {"list-pod-identity-associations": ["a-1\ta-2"]})
    assert [call[-1] for call in calls if "delete-pod-identity-association" in call] == ["a-1", "a-2"]


def test_the_logs_of_compose_have_a_bound() -> None:
    """Of all that runs on; docker's own log has none."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    running = {name: item for name, item in services.items() if name not in ("init", "worker-image")}
    assert set(running) == {"localstack", "dev", "worker", "mirror"}
    for item in running.values():
        assert item["logging"]["driver"] == "json-file"
        assert {"max-size", "max-file"} == set(item["logging"]["options"])


def test_the_mirror_of_compose_sees_the_workers_ledger() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ledger = "ledger:/var/lib/launch-worker"
    assert ledger in services["worker"]["volumes"]
    assert ledger in services["mirror"]["volumes"]
