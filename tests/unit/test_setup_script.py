"""deploy/local/setup, on a machine made of a few links and programs that only note how they are called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "local" / "setup"
TOOLS = ("sh", "cat", "date", "dirname", "ls", "mkdir", "tail", "touch", "chmod")

PYTHON = """\
#!/bin/sh
echo "python3 $*" >> "$CALLS"
case "$1 $2" in
    "-c import"*) exit {usable} ;;
    "-m venv") mkdir -p .venv/bin && cat "$0" > .venv/bin/python && chmod 755 .venv/bin/python ;;
    "--version ") echo "Python 3.{minor}.0" ;;
esac
"""
APT = """\
#!/bin/sh
echo "apt-get $*" >> "$CALLS"
case "$*" in *" install "*) for tool in {installs}; do cp_tool "$tool"; done ;; esac
exit {code}
"""


class Machine:
    """A checkout with a `PATH` of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.script = folder / "checkout" / "deploy" / "local" / "setup"
        self.script.parent.mkdir(parents=True)
        shutil.copy(SCRIPT, self.script)
        self.user(0)

    def program(self, name: str, text: str = "#!/bin/sh\n") -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def user(self, number: int) -> None:
        self.program("id", f"#!/bin/sh\necho {number}\n")

    def python(self, minor: int = 11) -> None:
        self.program("python3", PYTHON.format(usable=0 if minor >= 11 else 1, minor=minor))

    def everything(self) -> None:
        self.python()
        for name in ("git", "dockerd", "docker-registry"):
            self.program(name)

    def apt(self, *, code: int = 0, installs: tuple[str, ...] = ()) -> None:
        self.program(
            "cp_tool", f"#!/bin/sh\ncat {shutil.which('true')} > {self.bin}/$1; chmod 755 {self.bin}/$1\n"
        )
        self.program("apt-get", APT.format(code=code, installs=" ".join(installs) or '""'))

    def run(self, part: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "CALLS": str(self.folder / "calls"), **variables}
        return subprocess.run(
            [str(self.script), part], env=environment, capture_output=True, text=True, check=False
        )

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def apt_calls(self) -> list[str]:
        return [call for call in self.calls if call.startswith("apt-get")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_root_on_debian_gets_what_is_missing(machine: Machine) -> None:
    machine.python()
    machine.apt(installs=("git", "dockerd", "docker-registry"))
    result = machine.run("system")
    assert result.returncode == 0, result.stdout
    update, install = machine.apt_calls
    assert update == "apt-get update"
    assert install.endswith("install -y --no-install-recommends git docker.io docker-registry")
    assert "setup: installing git docker.io docker-registry ... " in result.stdout
    assert "without docker" not in result.stdout


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    machine.everything()
    (machine.bin / "docker-registry").unlink()
    machine.apt(installs=("docker-registry",))
    machine.run("system")
    assert machine.apt_calls[-1].endswith("--no-install-recommends docker-registry")


@pytest.mark.parametrize("answers", [True, False])
def test_a_docker_client_is_enough_only_if_a_daemon_answers_it(machine: Machine, answers: bool) -> None:
    machine.everything()
    (machine.bin / "dockerd").unlink()
    machine.program("docker", f"#!/bin/sh\nexit {0 if answers else 1}\n")
    machine.apt(installs=("dockerd",))
    assert "without docker" not in machine.run("system").stdout
    installed = [call for call in machine.apt_calls if call.endswith("docker.io")]
    assert bool(installed) is not answers


def test_others_are_told_what_is_left_out(machine: Machine) -> None:
    machine.user(1000)
    machine.python()
    machine.program("git")
    machine.apt()
    result = machine.run("system")
    assert result.returncode == 0
    assert machine.apt_calls == []
    assert "only root on Debian can install what is missing here: docker.io docker-registry" in result.stdout
    assert "without docker: no image builds" in result.stdout


def test_a_failed_install_shows_the_log_and_goes_on_but_not_in_ci(machine: Machine) -> None:
    machine.python()
    machine.apt(code=100)
    result = machine.run("system")
    assert result.returncode == 0
    assert "failed; the end of .state/setup.log:" in result.stdout
    assert "without docker" in result.stdout
    assert machine.run("system", CI="true").returncode == 1


def test_a_python_too_old_is_explained(machine: Machine) -> None:
    machine.everything()
    machine.python(minor=9)
    machine.user(1000)
    result = machine.run("system", PYTHON=str(machine.bin / "python3"))
    assert result.returncode == 1
    assert "no Python 3.11 or newer with venv and ensurepip was found (found: Python 3.9.0)" in result.stderr
    assert "make setup PYTHON=" in result.stderr


def test_python_part_makes_the_environment_once_and_installs_pinned(machine: Machine) -> None:
    machine.python()
    for _ in range(2):
        result = machine.run("python")
        assert result.returncode == 0, result.stdout + result.stderr
    assert len([call for call in machine.calls if call.startswith("python3 -m venv")]) == 1
    installs = [call for call in machine.calls if call.startswith("python3 -m pip install")]
    assert len(installs) == 2
    assert all(call.endswith("-c constraints.txt -e .[dev]") for call in installs)
    assert "installing pinned dependencies into .venv ... " in result.stdout


def test_localstack_part_has_an_environment_of_its_own(machine: Machine) -> None:
    machine.python()
    # The interpreter that stands in for all of them makes `.venv` only.
    machine.program("python3", PYTHON.format(usable=0, minor=11).replace(".venv/", ".venv-localstack/"))
    result = machine.run("localstack")
    assert result.returncode == 0, result.stdout + result.stderr
    (made,) = [call for call in machine.calls if call.startswith("python3 -m venv")]
    assert made.endswith(" .venv-localstack")
    (install,) = [call for call in machine.calls if call.startswith("python3 -m pip install")]
    assert install.endswith("-c constraints-localstack.txt localstack-core[runtime] service_identity")


def test_wrong_use(machine: Machine) -> None:
    assert machine.run("everything").returncode == 2
