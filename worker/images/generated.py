"""The Dockerfile for a source that brings none: dependencies before code, so that a change of code installs nothing.

Both of its stages come from one base image, so that what is compiled in the first runs in the second. The first makes
the virtual environment /env with `install.py`, which is added to the context; the second takes it over.

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
INSTALLER = f"{RESERVED}/install.py"
"""Where `install.py` stands in the context."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a generated image is built on."""

    image: str
    python_version: str = ""
    """X.Y that the launch asks for; empty: whatever is there."""
    may_lack_python: bool = False
    """An accelerator's image: it gets Debian's or Ubuntu's Python if it has none."""
    has_bash: bool = False


def generated_dockerfile(base: Base, dependencies: Dependencies, *, cache_mounts: bool) -> str:
    """The text. `cache_mounts`: downloads of pip and uv outlive the build (BuildKit only)."""
    # SageMaker's volumes belong to root; PYTHONUNBUFFERED: a log line is in CloudWatch when it is printed.
    variables = "PYTHONUNBUFFERED=1 SHELL=/bin/bash" if base.has_bash else "PYTHONUNBUFFERED=1"
    head = ["USER root", f"ENV {variables}", f"WORKDIR {CODE}"]
    if not (dependencies.requirements or base.may_lack_python):
        return "\n".join([f"FROM {base.image}", *head, _copy(".", "./"), ""])
    if base.may_lack_python:
        head.append(_install_python(base.python_version))
    code = f'COPY --from=build ["{CODE}", "./"]' if dependencies.needs_code else _copy(".", "./")
    lines = [
        f"FROM {base.image} AS base",
        *head,
        "FROM base AS build",
        *_inputs(dependencies),
        _install(base, dependencies, cache_mounts=cache_mounts),
        "FROM base",
        'COPY --from=build ["/env", "/env"]',
        "ENV VIRTUAL_ENV=/env PATH=/env/bin:$PATH",
        code,
    ]
    return "\n".join([*lines, ""])


def _inputs(dependencies: Dependencies) -> list[str]:
    """What the first stage needs; only of all the code if the dependencies name the code itself."""
    if dependencies.needs_code:
        return [_copy(".", "./")]
    copied = [INSTALLER, *dependencies.copied, *(path for path, _ in dependencies.added)]
    folders = [dependencies.wheels] if dependencies.wheels else []
    return [
        *(_copy(path, f"./{path}") for path in copied),
        *(_copy(f"{path}/", f"./{path}/") for path in folders),
    ]


def _install(base: Base, dependencies: Dependencies, *, cache_mounts: bool) -> str:
    mounts = "".join(f"--mount=type=cache,target=/root/.cache/{tool} " for tool in ("pip", "uv"))
    # As variables, since an older pip does not know all of them and would refuse options.
    settings = "PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1"
    if not cache_mounts:
        settings += " PIP_NO_CACHE_DIR=1"
    options = {
        "--requirements": dependencies.requirements,
        "--wheels": dependencies.wheels,
        "--python": base.python_version,
    }
    given = "".join(f" {name} {value}" for name, value in options.items() if value)
    best_effort = " --best-effort" if dependencies.best_effort else ""
    names = (
        [f"python{base.python_version}", "python3", "python"]
        if base.python_version
        else ["python3", "python"]
    )
    python = " || ".join(f"command -v {name}" for name in dict.fromkeys(names))
    return f'RUN {mounts if cache_mounts else ""}{settings} "$({python})" {INSTALLER}{given}{best_effort}'


def _install_python(version: str) -> str:
    """A Python from the base image's own Debian or Ubuntu, unless it has one."""
    name = f"python{version or '3'}"
    no_apt = (
        "the base image has no Python, and no apt-get to install it: take a base image that has Python, or one"
        " made from Debian or Ubuntu"
    )
    missing = f"apt-get of the base image cannot install {name}: take a base image that has it"
    install = f"apt-get install -y -qq --no-install-recommends {name} python3-pip ca-certificates"
    return (
        "RUN command -v python3 >/dev/null || command -v python >/dev/null"
        f" || {{ command -v apt-get >/dev/null || {{ echo '[launch-worker] {no_apt}'; exit 1; }};"
        f" apt-get update -qq && DEBIAN_FRONTEND=noninteractive {install} && rm -rf /var/lib/apt/lists/*"
        f" || {{ echo '[launch-worker] {missing}'; exit 1; }}; }}"
    )


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
