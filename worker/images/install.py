"""Runs inside the build of a generated image: makes the virtual environment /env and installs packages into it.

Not part of the worker: its text is added to the build context and run by the base image's own Python (3.7 or newer)
with nothing but the standard library.

uv installs, in one pinned version. pip does where uv is of no use: from a folder of wheels without uv in the base
image, for a base image that brings packages of its own (uv would install a second torch beside the image's, pip counts
what is there), and where uv cannot be installed.

With --best-effort (a frozen environment, which may hold packages of another machine) what cannot be installed is left
out and named, one line each, in the form that `worker.images.build_output` reads.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from importlib.util import find_spec
from pathlib import Path

ENV = "/env"
ENV_PYTHON = "/env/bin/python"
UV = "uv==0.13.9"
UV_FOLDER = "/tmp/launch-worker-uv"  # noqa: S108  # of the build stage, which is thrown away
PIP_ONLY_TOOLS = {"pip", "setuptools", "wheel", "uv", "distribute", "packaging"}
GIVE_UP_AFTER = 10
LOCAL_VERSION = re.compile(r"^([A-Za-z0-9._\[\],-]+==[^+\s;]+)\+[^\s;]+")
SHOWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[^\]]*\])?(\s*[=<>!~]=?=?\s*[^\s;@]+)?")


def say(text: str) -> None:
    sys.stdout.write("[launch-worker] " + text + "\n")
    sys.stdout.flush()


def run(*command: str) -> bool:
    """Whether the command succeeded; its output is the build's."""
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode == 0


def output(*command: str) -> str:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def has_pip() -> bool:
    """Of the base image, or made with the venv where that has none."""
    return bool(find_spec("pip")) or Path(ENV, "bin", "pip").exists()


def brings_packages() -> bool:
    """The base image's Python has packages that are not just tools to install some."""
    try:
        from importlib.metadata import distributions  # noqa: PLC0415  # Python 3.8
    except ImportError:
        return False
    names = {(found.metadata["Name"] or "").lower() for found in distributions()}
    return bool(names - PIP_ONLY_TOOLS - {""})


def make_environment() -> None:
    """A venv that sees what the base image's Python has."""
    with_pip = not has_pip()
    try:
        venv.create(ENV, system_site_packages=True, with_pip=with_pip, symlinks=True)
    except subprocess.CalledProcessError:  # no ensurepip, as on Debian: uv may do without pip
        venv.create(ENV, system_site_packages=True, clear=True, symlinks=True)
    if sys.prefix != sys.base_prefix:
        # The base image's Python is a venv itself: a venv made from it sees only what lies beneath that.
        folder = next(Path(ENV, "lib").glob("python*")) / "site-packages"
        (folder / "base_image.pth").write_text("\n".join(site.getsitepackages()) + "\n")


def indexes_of_pip(configuration: str) -> dict[str, str]:
    """uv's variables for the indexes that `pip config list` names; uv does not read pip's configuration."""
    variables = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX"}
    found = {}
    for line in configuration.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2].replace("_", "-")
        if name in variables:
            found[variables[name]] = " ".join(value.strip("'\"").replace("\\n", " ").split())
    return found


class Pip:
    """The base image's own pip."""

    def __init__(self, options: list[str]) -> None:
        self.command = [ENV_PYTHON, "-m", "pip", "install", *options]
        if "PIP_NO_CACHE_DIR" in os.environ:
            self.command.append("--no-cache-dir")

    def install(self, *arguments: str) -> bool:
        return run(*self.command, *arguments)


class Uv:
    """uv, told by pip's configuration where packages are."""

    def __init__(self, program: str, options: list[str]) -> None:
        self.command = [program, "pip", "install", "--python", ENV_PYTHON, "--link-mode", "copy", *options]
        if "PIP_NO_CACHE_DIR" in os.environ:
            self.command.append("--no-cache")
        os.environ["VIRTUAL_ENV"] = ENV
        for name, value in indexes_of_pip(output(sys.executable, "-m", "pip", "config", "list")).items():
            os.environ.setdefault(name, value)

    def install(self, *arguments: str) -> bool:
        return run(*self.command, *arguments)


def choose_tool(wheels: str) -> Pip | Uv:
    options = ["--no-index", "--find-links", wheels] if wheels else []
    if not brings_packages():
        program = shutil.which("uv")
        if not program and not wheels and has_pip():
            target = ["--target", UV_FOLDER, UV]
            if run(ENV_PYTHON, "-m", "pip", "install", "--quiet", *target):
                program = str(Path(UV_FOLDER, "bin", "uv"))
            else:
                say("warning: " + UV + " cannot be installed in the base image; its pip is used instead")
        if program and run(program, "--version"):
            return Uv(program, options)
    if not has_pip():
        say("the base image has Python, but neither pip nor uv; take a base image that has pip")
        sys.exit(1)
    return Pip(options)


def read_frozen(path: str) -> tuple[list[str], list[str]]:
    """(lines of the list that are options, its packages)."""
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    options = [line for line in lines if line.startswith(("--", "-i ", "-f "))]
    return options, [line for line in lines if line and line not in options and not line.startswith("#")]


class BestEffort:
    """Installs what can be installed."""

    def __init__(self, tool: Pip | Uv, options: list[str]) -> None:
        self.tool = tool
        self.options = options
        self.installed = 0
        self.failed: list[str] = []

    def try_all(self, wanted: list[str]) -> None:
        """All at once, else each half: what remains at the end are those that fail by themselves."""
        if not wanted:
            return
        if self.attempt(wanted):
            self.installed += len(wanted)
        elif len(wanted) == 1:
            self.failed.append(wanted[0])
            if not self.installed and len(self.failed) >= GIVE_UP_AFTER:
                say("no package can be installed; is there an index that the build can reach?")
                sys.exit(1)
        else:
            middle = len(wanted) // 2
            self.try_all(wanted[:middle])
            self.try_all(wanted[middle:])

    def try_local(self, requirement: str) -> None:
        """`torch==2.3.0+cu121`: built for a machine, and only on an index of its own; else the public version."""
        public = LOCAL_VERSION.sub(r"\1", requirement)
        if self.attempt([requirement]):
            self.installed += 1
        elif self.attempt([public]):
            self.installed += 1
            say("warning: " + shown(public) + " is installed in the place of " + shown(requirement))
        else:
            self.failed.append(requirement)

    def attempt(self, wanted: list[str]) -> bool:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=".", delete=False) as file:
            file.write("\n".join([*self.options, *wanted]) + "\n")
        try:
            return self.tool.install("--no-deps", "-r", file.name)
        finally:
            Path(file.name).unlink()


def shown(requirement: str) -> str:
    """Without a login: the address of a package may hold one."""
    found = SHOWN_NAME.match(requirement)
    return found[0] if found else re.sub(r"://[^/\s]*@", "://", requirement)[:100]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requirements", default="")
    parser.add_argument("--wheels", default="")
    parser.add_argument("--python", default="")
    parser.add_argument("--best-effort", action="store_true")
    given = parser.parse_args()
    here = "{}.{}".format(*sys.version_info[:2])
    if given.python not in ("", here, here.partition(".")[0]):
        say("warning: the base image has Python " + here + ", " + given.python + " was asked for")
    make_environment()
    if not given.requirements:
        return
    tool = choose_tool(given.wheels)
    if not given.best_effort:
        sys.exit(0 if tool.install("-r", given.requirements) else 1)
    options, wanted = read_frozen(given.requirements)
    local = [requirement for requirement in wanted if LOCAL_VERSION.match(requirement)]
    effort = BestEffort(tool, options)
    effort.try_all([requirement for requirement in wanted if requirement not in local])
    for requirement in local:
        effort.try_local(requirement)
    for requirement in effort.failed:
        say("not installed: " + shown(requirement))


if __name__ == "__main__":
    main()
