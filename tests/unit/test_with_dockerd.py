"""deploy/local/with-dockerd, with a program that plays dockerd: it answers /_ping and notes how it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "local" / "with-dockerd"

# `refuse` in its folder: it starts only without a bridge; `broken`: not at all.
DAEMON = """\
#!{python}
import pathlib, signal, socket, sys

folder = pathlib.Path({folder!r})
arguments = sys.argv[1:]
with (folder / "starts").open("a") as starts:
    print(*arguments, file=starts)
if (folder / "broken").exists():
    sys.exit("no space left on device")
if (folder / "refuse").exists() and "--bridge=none" not in arguments:
    sys.exit("failed to create NAT chain DOCKER: iptables failed")

def end(*_):
    (folder / "stopped").write_text("by SIGTERM")
    sys.exit(0)

signal.signal(signal.SIGTERM, end)
peer = socket.socket(socket.AF_UNIX)
peer.bind(arguments[arguments.index("--host") + 1].removeprefix("unix://"))
peer.listen()
while True:
    client, _ = peer.accept()
    with client:
        client.recv(1000)
        client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nOK")
"""


class Machine:
    """A folder with programs that stand for a machine: `id` says root, and a daemon of its own name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon = f"fake-{os.getpid()}"  # the script looks for other daemons by this name
        self.program("id", "#!/bin/sh\necho 0\n")
        self.program("docker", "#!/bin/sh\nexit 1\n")

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)

    def install_daemon(self) -> None:
        self.program(self.daemon, DAEMON.format(python=sys.executable, folder=str(self.folder)))

    def note(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def popen(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{self.folder}:{os.defpath}:/usr/sbin",
            "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            "DOCKERD": self.daemon,
            "DOCKERD_STATE": str(self.folder / "state"),
            **variables,
        }
        return subprocess.Popen(
            [str(SCRIPT), *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, stdin: str = "", **variables: str) -> tuple[int, str, str]:
        with self.popen(*command, **variables) as process:
            out, error = process.communicate(stdin, timeout=60)
            return process.returncode, out, error


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_starts_a_daemon_for_the_command_and_stops_it(machine: Machine) -> None:
    machine.install_daemon()
    code, out, error = machine.run("sh", "-c", "cat; exit 7", stdin="typed in\n")
    assert (code, out) == (7, "typed in\n"), error
    assert machine.note("stopped") == "by SIGTERM"
    assert machine.note("starts").count("\n") == 1
    assert "--bridge" not in machine.note("starts")


def test_uses_a_daemon_that_answers_and_leaves_it_alone(machine: Machine) -> None:
    machine.install_daemon()
    with machine.popen("sh", "-c", f"touch {machine.folder}/ready; read answer") as outer:
        wait_until((machine.folder / "ready").exists)
        code, out, _ = machine.run("echo", "inside")
        assert (code, out) == (0, "inside\n")
        assert not machine.note("stopped")
        outer.communicate("\n", timeout=20)
    assert machine.note("starts").count("\n") == 1
    assert machine.note("stopped") == "by SIGTERM"


def test_retries_without_a_bridge_where_networking_is_not_allowed(machine: Machine) -> None:
    machine.install_daemon()
    machine.program("refuse", "")
    code, _, error = machine.run("true", DOCKERD_ARGS="--data-root elsewhere")
    assert code == 0, error
    first, second = machine.note("starts").splitlines()
    assert first.endswith("--data-root elsewhere")
    assert second.endswith("--data-root elsewhere --bridge=none --iptables=false --ip-masq=false")
    assert "without a bridge" in error


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_passes_signals_on_and_still_stops_the_daemon(machine: Machine, sent: signal.Signals) -> None:
    machine.install_daemon()
    command = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal({int(sent)}, lambda *_: sys.exit(42))\n"
        f"pathlib.Path({str(machine.folder / 'ready')!r}).touch()\n"
        "time.sleep(30)\n"
    )
    with machine.popen(sys.executable, "-c", command) as process:
        wait_until((machine.folder / "ready").exists)
        process.send_signal(sent)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 42, error
    assert machine.note("stopped") == "by SIGTERM"


def test_the_command_is_killed_by_ctrl_c_as_usual(machine: Machine) -> None:
    """A shell's background command ignores SIGINT; ours must not."""
    machine.install_daemon()
    with machine.popen("sh", "-c", f"touch {machine.folder}/ready; exec sleep 30") as process:
        wait_until((machine.folder / "ready").exists)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT


def test_goes_on_without_docker_and_says_what_is_left_out(machine: Machine) -> None:
    code, out, error = machine.run("sh", "-c", "echo done; exit 3")
    assert (code, out) == (3, "done\n")
    assert "none was started: dockerd is not installed" in error
    assert "run as plain processes" in error


def test_says_why_a_daemon_failed(machine: Machine) -> None:
    machine.install_daemon()
    machine.program("broken", "")
    code, _, error = machine.run("true")
    assert code == 0
    assert "no space left on device" in error
    assert machine.note("starts").count("\n") == 1


def test_only_root_starts_a_daemon(machine: Machine) -> None:
    machine.install_daemon()
    machine.program("id", "#!/bin/sh\necho 1000\n")
    _, _, error = machine.run("true")
    assert "only root can start one" in error
    assert not machine.note("starts")


@pytest.mark.parametrize("variable", [{"CI": "true"}, {"LAUNCH_REQUIRE_DOCKER": "1"}])
def test_docker_can_be_required(machine: Machine, variable: dict[str, str]) -> None:
    code, out, error = machine.run("echo", "ran", **variable)
    assert (code, out) == (1, "")
    assert "docker is required here" in error


def test_a_missing_command_is_named(machine: Machine) -> None:
    machine.install_daemon()
    code, _, error = machine.run("no-such-command")
    assert code == 127
    assert "no-such-command" in error
    assert machine.note("stopped") == "by SIGTERM"
