"""W&B's `launch-config.yaml`, mapped onto our settings: what is in the file of an agent works here unchanged.

The keys are those of wandb/sdk/launch/agent/config.py (wandb 0.31). The mapping is pure; only `read_launch_config`
touches a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from worker.errors import SettingsError
from worker.settings import parse_registry, repository_uri

DEFAULT_PLACE = Path("~/.config/wandb/launch-config.yaml")
"""Where `wandb launch-agent` looks (wandb/sdk/launch/utils.py)."""

_ACCOUNT = re.compile(r"\d{12}", re.ASCII)
_OTHER_CLOUDS = re.compile(r"(?:[^/]*\.)?(?:azurecr\.io|pkg\.dev|gcr\.io)/.*")
_PLATFORMS = ("linux/amd64", "linux/arm64")
_LOG_LEVELS = ("info", "info", "debug")
_SCHEDULERS = "max_schedulers (sweep schedulers are no training jobs: run `wandb launch-agent` for them)"


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """What a file means here."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variable → value, as if it had been set there."""
    ignored: tuple[str, ...] = ()
    """Keys that mean nothing here, as paths."""
    problems: tuple[str, ...] = ()
    """`key path: what; what to do`."""
    path: Path | None = None
    """None: there is no file."""


def read_launch_config(given: Path | None, *, default: bool = False) -> LaunchConfig:
    """The file that was `given`, else with `default` the one in W&B's own place, if there is one.

    Raises `SettingsError` for a file that cannot be read, and with all that is wrong in it."""
    path = given or DEFAULT_PLACE.expanduser()
    if given is None and not (default and path.is_file()):
        return LaunchConfig()
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config: {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise SettingsError(f"{path}{line}: is not YAML; correct it") from error
    config = map_launch_config({} if content is None else content)
    if config.problems:
        raise SettingsError("\n".join(f"{path}: {problem}" for problem in config.problems))
    return LaunchConfig(config.variables, config.ignored, (), path)


def map_launch_config(content: object) -> LaunchConfig:
    """Settings, meaningless keys and problems of a file's content, all at once."""
    if not isinstance(content, dict):
        return LaunchConfig(
            problems=("the file: is not a mapping of keys to values; write `key: value` lines",)
        )
    top = _Section("", content)
    environment = top.section("environment")
    builder = top.section("builder")
    found = {
        "LAUNCH_WANDB_QUEUES": _queues(top),
        "LAUNCH_ENTITY": top.text("entity"),
        "LAUNCH_MAX_JOBS": top.whole("max_jobs", least=-1),
        "LAUNCH_SECURE_MODE": top.flag("secure_mode"),
        "LAUNCH_LOG_LEVEL": _log_level(top),
        "LAUNCH_STOPPED_RUN_TIMEOUT": top.whole("stopped_run_timeout", least=0),
        **_environment(environment),
        **_builder(builder),
    }
    registry = _registry(top.section("registry"), found["AWS_REGION"] or "")
    found["LAUNCH_REGISTRY"] = _destination(builder) or registry
    schedulers = (_SCHEDULERS,) if top.whole("max_schedulers", least=-1) not in (None, "0") else ()
    return LaunchConfig(
        variables={name: value for name, value in found.items() if value is not None},
        ignored=(*top.ignored(), *schedulers),
        problems=tuple(top.problems),
    )


class _Section:
    """A mapping of the file, which remembers what was asked for and what is wrong. A null is as if it were absent."""

    def __init__(self, path: str, content: Mapping[Any, Any], problems: list[str] | None = None) -> None:
        self._path = path
        self._content = {str(key): value for key, value in content.items() if value is not None}
        self._asked: set[str] = set()
        self._below: list[_Section] = []
        self.problems: list[str] = [] if problems is None else problems

    def section(self, name: str) -> _Section:
        value = self.value(name)
        if value is not None and not isinstance(value, dict):
            self.wrong(name, "is not a mapping", "write its keys indented below it")
        below = _Section(f"{self._path}{name}.", value if isinstance(value, dict) else {}, self.problems)
        self._below.append(below)
        return below

    def value(self, name: str) -> Any:
        self._asked.add(name)
        return self._content.get(name)

    def text(self, name: str) -> str | None:
        value = self.value(name)
        if value is None or isinstance(value, str):
            return value.strip() if value else None
        self.wrong(name, f"is {_kind(value)}, not text", "write it in quotes")
        return None

    def whole(self, name: str, *, least: int) -> str | None:
        value = self.value(name)
        number = int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value) else value
        if value is None:
            return None
        if isinstance(number, int) and not isinstance(number, bool) and number >= least:
            return str(number)
        self.wrong(name, f"is {value!r}", f"write a whole number from {least}")
        return None

    def flag(self, name: str) -> str | None:
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or str(value).lower() in {"true", "false"}:
            return str(value).lower()
        self.wrong(name, f"is {value!r}", "write true or false")
        return None

    def wrong(self, name: str, what: str, remedy: str) -> None:
        self.problems.append(f"{self._path}{name}: {what}; {remedy}")

    def ignored(self) -> Iterator[str]:
        for name in self._content:
            if name not in self._asked:
                yield f"{self._path}{name}"
        for below in self._below:
            yield from below.ignored()


def _queues(top: _Section) -> str | None:
    """`queues`, and `queue`, which older files have."""
    value, old = top.value("queues"), top.text("queue")
    queues = [value] if isinstance(value, str) else value or []
    if not isinstance(queues, list) or not all(isinstance(name, str) and name for name in queues):
        top.wrong("queues", "is not a list of names", "write one name a line, each after a `-`")
        return None
    if any("," in name for name in queues):
        top.wrong("queues", "has a name with a comma in it", "rename that queue in W&B")
    return ",".join(dict.fromkeys([*queues, *([old] if old else [])])) or None


def _log_level(top: _Section) -> str | None:
    verbosity = top.whole("verbosity", least=0)
    return None if verbosity is None else _LOG_LEVELS[min(int(verbosity), len(_LOG_LEVELS) - 1)]


def _environment(section: _Section) -> dict[str, str | None]:
    kind = section.text("type")
    if kind not in (None, "aws"):
        section.wrong("type", f"is {kind!r}, and SageMaker is in AWS only", "write aws")
    return {"AWS_REGION": section.text("region")}


def _registry(section: _Section, region: str) -> str | None:
    """`uri`, else put together from its parts; `repository` is what W&B's code reads and `repo_name` what it takes."""
    kind = section.text("type")
    if kind not in (None, "ecr"):
        section.wrong("type", f"is {kind!r}, and SageMaker pulls images from ECR", "write ecr")
        return None
    uri = _repository(section, "uri")
    account, own_region = section.value("account_id"), section.text("region")
    name = section.text("repo_name")
    repository = section.text("repository")
    if uri or (account is None and not name and not repository):
        return uri
    if repository and (repository.startswith("arn:") or "." in repository.partition("/")[0]):
        return _repository(section, "repository")
    name, region = name or repository, own_region or region
    # YAML reads digits as a number, and with a 0 in front as an octal one.
    account = f"{account:d}" if isinstance(account, int) else account
    if account is None:
        section.wrong("account_id", "is missing", "name the registry's AWS account, or give uri")
    elif not isinstance(account, str) or not _ACCOUNT.fullmatch(account):
        section.wrong("account_id", "is not the 12 digits of an AWS account", "write them in quotes")
    elif not name:
        section.wrong("repo_name", "is missing", "name the ECR repository, or give uri")
    elif not region:
        section.wrong("region", "is missing", "name the registry's Region, or give uri")
    else:
        return repository_uri(account, region, name)
    return None


def _builder(section: _Section) -> dict[str, str | None]:
    kind, platform = section.text("type"), section.text("platform")
    builders = {None: None, "docker": "docker", "noop": "none"}
    if kind == "kaniko":
        remedy = "write docker and give the worker a docker daemon, or noop for ready images only"
        section.wrong("type", "is kaniko, and this worker builds with docker, not in Kubernetes", remedy)
    elif kind not in builders:
        section.wrong("type", f"is {kind!r}", "write docker or noop")
    if platform not in (None, *_PLATFORMS):
        section.wrong("platform", f"is {platform!r}", f"write one of {', '.join(_PLATFORMS)}")
    return {"LAUNCH_BUILDER": builders.get(kind), "LAUNCH_PLATFORM": platform}


def _destination(section: _Section) -> str | None:
    return _repository(section, "destination")


def _repository(section: _Section, name: str) -> str | None:
    """An ECR repository by URI or ARN, without a tag."""
    given = section.text(name)
    if not given:
        return None
    uri = str(parse_registry(given))
    host, slash, path = uri.partition("/")
    if uri.startswith("arn:"):
        section.wrong(name, f"{given!r} is not the ARN of an ECR repository", "copy the repository's URI")
    elif _OTHER_CLOUDS.fullmatch(uri):
        section.wrong(name, f"{given!r} is not in ECR, which SageMaker pulls from", "name an ECR repository")
    elif not slash or not path or "://" in uri or not ({".", ":"} & set(host)):
        remedy = "write ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY"
        section.wrong(name, f"{given!r} does not name a repository", remedy)
    elif {":", "@"} & set(path):
        section.wrong(name, f"{given!r} has a tag or digest", "remove it: each image gets a tag of its own")
    else:
        return uri
    return None


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)
