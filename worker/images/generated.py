"""The Dockerfile for a source that brings none: dependencies before code, so that a change of code installs nothing.

Pure. What counts as dependencies is W&B's rule (`wandb/sdk/launch/builder/build.py`, get_requirements_section).
"""

from __future__ import annotations

import json
import posixpath
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass

CODE = "/opt/ml/code"
"""Where SageMaker's own examples keep code (developer guide, 'Adapting your own training container')."""
RESERVED = ".launch-worker"
"""Folder of the build context for what the worker adds to it."""
WHEELS = ("wheelhouse", ".wheels")
_ADDED = f"{RESERVED}/requirements.txt"
_NESTED = re.compile(r"(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)")
_LOCAL = re.compile(
    r"(-e|--editable|-f|--find-links)\b(?![\s=]*(\w+\+)?(https?|git|ssh)[:+])"
    r"|\.{0,2}/|\.(\s|\[|$)|(\S+\s*@\s*)?file:|(?!\w+:)[^\s@]+\.(whl|zip|tar\.gz)(\s|\[|$)"
)
"""A line that names something of the source itself: a folder, a wheel, `-e .`; not an address."""
_DEVELOPMENT_WANDB = re.compile(r"wandb==\S*\.dev\d+\S*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """What is installed before the code is copied."""

    requirements: str = ""
    """The requirements file, relative to the context; empty: nothing is installed."""
    copied: tuple[str, ...] = ()
    """The files of the source that pip needs for it."""
    needs_code: bool = False
    """It names the source itself (`-e .`), so the code is copied first after all."""
    best_effort: bool = False
    """A frozen environment: what cannot be installed here is left out and told, as W&B does."""
    added: tuple[tuple[str, str], ...] = ()
    """Files (path, text) to add to the context."""
    wheels: str = ""
    """Folder of wheels, the only place where pip looks; empty: pip's own index."""
    warnings: tuple[str, ...] = ()


def read_dependencies(text: Callable[[str], str | None], is_folder: Callable[[str], bool]) -> Dependencies:
    """What the source depends on. Raises ValueError for a pyproject.toml that cannot be read."""
    wheels = next(filter(is_folder, WHEELS), "")
    if (requirements := text("requirements.txt")) is not None:
        copied, lines = _requirement_files("requirements.txt", text)
        return Dependencies(
            requirements="requirements.txt",
            copied=copied,
            needs_code=any(_LOCAL.match(line) for line in lines),
            wheels=wheels,
            warnings=_without_wandb(lines, "requirements.txt"),
        )
    requirements = text("pyproject.toml")
    if requirements is not None and (lines := _project_dependencies(requirements)):
        return Dependencies(
            requirements=_ADDED,
            added=((_ADDED, "".join(f"{line}\n" for line in lines)),),
            needs_code=any(_LOCAL.match(line) for line in lines),
            wheels=wheels,
            warnings=_without_wandb(lines, "pyproject.toml"),
        )
    if (frozen := text("requirements.frozen.txt")) is not None:
        # The run's own machine may have had a wandb that was never published.
        lines = [_DEVELOPMENT_WANDB.sub("wandb", line) for line in _lines(frozen)]
        return Dependencies(
            requirements=_ADDED,
            added=((_ADDED, "".join(f"{line}\n" for line in lines)),),
            best_effort=True,
            wheels=wheels,
            warnings=_without_wandb(lines, "requirements.frozen.txt"),
        )
    missing = (
        "neither requirements.txt nor dependencies in pyproject.toml were found: no packages are installed"
    )
    return Dependencies(warnings=(missing,))


def generated_dockerfile(base: str, dependencies: Dependencies, *, cache_mounts: bool) -> str:
    """The text. `cache_mounts`: pip's downloads outlive the build (BuildKit only)."""
    install = _install(dependencies, cache_mounts=cache_mounts)
    code = [_copy(".", "./")]
    if dependencies.needs_code:
        steps = [*code, *install]
    else:
        copied = [*dependencies.copied, *(path for path, _ in dependencies.added)]
        folders = [dependencies.wheels] if dependencies.wheels else []
        steps = [*(_copy(path, f"./{path}") for path in copied)]
        steps += [_copy(f"{path}/", f"./{path}/") for path in folders]
        steps = [*steps, *install, *code] if install else code
    # SageMaker's volumes belong to root; PYTHONUNBUFFERED: a log line is in CloudWatch when it is printed.
    head = [f"FROM {base}", "USER root", "ENV PYTHONUNBUFFERED=1", f"WORKDIR {CODE}"]
    return "\n".join([*head, *steps, ""])


def _install(dependencies: Dependencies, *, cache_mounts: bool) -> list[str]:
    if not dependencies.requirements:
        return []
    mount = "--mount=type=cache,target=/root/.cache/pip " if cache_mounts else ""
    # As variables, since an older pip does not know all of them and would refuse options.
    settings = "PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_INPUT=1"
    options = "" if cache_mounts else " --no-cache-dir"
    if dependencies.wheels:
        options += f" --no-index --find-links {dependencies.wheels}"
    pip = f"{settings} python3 -m pip install{options}"
    if not dependencies.best_effort:
        return [f"RUN {mount}{pip} -r {dependencies.requirements}"]
    one_by_one = (
        'while read -r line; do [ -z "$line" ] ||'
        f' {pip} --no-deps "$line" || echo "ERROR: Failed to install: $line"; done < {dependencies.requirements}'
    )
    return [f"RUN {mount}{pip} --no-deps -r {dependencies.requirements} || {one_by_one}"]


def _copy(source: str, target: str) -> str:
    """The JSON form: names may hold blanks."""
    return f"COPY {json.dumps([source, target])}"


def _requirement_files(path: str, text: Callable[[str], str | None]) -> tuple[tuple[str, ...], list[str]]:
    """A requirements file with those that it names (`-r`, `-c`; their paths are relative to it), and all lines."""
    waiting, files, lines = [path], dict[str, None](), list[str]()
    while waiting:
        current = waiting.pop()
        content = None if current in files or current.startswith("../") else text(current)
        if content is None:
            continue
        files[current] = None
        for line in _lines(content):
            lines.append(line)
            if nested := _NESTED.match(line):
                waiting.append(posixpath.normpath(posixpath.join(posixpath.dirname(current), nested[1])))
    return tuple(files), lines


def _lines(text: str) -> list[str]:
    """Lines without comments, as pip reads them."""
    bare = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.removeprefix("\ufeff").splitlines())
    return [line for line in bare if line]


def _project_dependencies(text: str) -> list[str]:
    """`[project].dependencies`; empty where there are none, or they are dynamic."""
    try:
        project = tomllib.loads(text).get("project", {})
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    listed = project.get("dependencies", []) if isinstance(project, dict) else []
    if not isinstance(listed, list):
        raise ValueError("project.dependencies is not a list")  # noqa: TRY004  # as tomllib's own error is
    return [" ".join(str(line).split()) for line in listed]


def _without_wandb(lines: list[str], name: str) -> tuple[str, ...]:
    if any("wandb" in line for line in lines):
        return ()
    return (f"wandb is not in {name}: the run will not report to W&B unless the base image has it",)
