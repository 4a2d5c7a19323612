"""From source files to a recipe: which Dockerfile, which part of the source as context, which base images. Pure.

Precedence is that of W&B's agent (`wandb/sdk/launch/builder/context_manager.py`), first match wins:

1. the Dockerfile that the launch or the job names, relative to the context root
2. `Dockerfile.wandb` beside the entrypoint's file: that folder is the context
3. a generated one: dependencies from `requirements.txt`, `pyproject.toml` or `requirements.frozen.txt`, then the code

A generated Dockerfile holds no entrypoint: SageMaker is told it (ContainerEntrypoint), so launches that differ in
nothing else share an image. A folder `wheelhouse` or `.wheels` in the source's root is where pip then looks for
packages, and nowhere else: such a build needs no network.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.errors import Never, Stage
from worker.images.generated import (
    INSTALLER,
    Base,
    Dependencies,
    generated_dockerfile,
    read_dependencies,
)
from worker.images.stages import external_images

WANDB_DOCKERFILE = "Dockerfile.wandb"
DEFAULT_PYTHON = "3.11"
"""Of generated images when the job names no version. W&B's agent takes its own; that would give one launch different
images on different workers."""
_PYTHON = re.compile(r"(\d+)(?:\.(\d+))?(?:[.\w+-]*)")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")


class SourceFiles(Protocol):
    """What the plan asks about a source. Paths are relative to its root, with `/`."""

    def text(self, path: str) -> str | None:
        """A file's text; None if there is no such file, or it lies outside the source."""
        ...

    def is_folder(self, path: str) -> bool:
        """There is such a folder in the source."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How an image is built from a source."""

    dockerfile: str
    """Its text."""
    context: str
    """The folder that is the build context, relative to the source's root; "." for all of it."""
    bases: tuple[str, ...]
    """External images that it builds on, as `stages.external_images` finds them."""
    entry_point: tuple[str, ...]
    """The command, as given or as rewritten because of the context; empty: the image's own."""
    generated: bool
    python_version: str
    """X.Y of a generated image; of an own Dockerfile whatever the job said."""
    warnings: tuple[str, ...] = ()
    """What the submitter should know; the build goes on."""
    ignore: str = ""
    """The text of the `.dockerignore` that holds for it."""
    added: tuple[tuple[str, str], ...] = ()
    """Files (path in the context, text) that the Dockerfile needs and the source does not have."""
    needed: frozenset[str] = frozenset()
    """Paths in the context, files or folders, that the Dockerfile names: sent whatever `ignore` says."""


def plan_recipe(
    files: SourceFiles,
    *,
    dockerfile_override: str,
    entry_point: Sequence[str],
    base_image: str,
    python_version: str,
    installer: str,
    build_context: str = "",
    job_entry_point: Sequence[str] = (),
    cache_mounts: bool = False,
    may_lack_python: bool = False,
) -> Recipe:
    """Decide how the image is built.

    `dockerfile_override` is the launch's own or else the job's, relative to `build_context`; `entry_point` overrides
    `job_entry_point`, but where the image comes from the job's decides, so that launches of a job share one.
    `installer`: the text of `install.py`; `cache_mounts` lets it keep its downloads between builds, which only BuildKit
    can; `may_lack_python`: `base_image` may get a Python. Raises `Never` (stage `build`): LW-BUILD-CONTEXT,
    LW-DOCKERFILE-MISSING, LW-NO-ENTRYPOINT, LW-BASE-IMAGE, LW-PYTHON-VERSION, LW-PYPROJECT."""
    root, command = _build_context(files, build_context), tuple(entry_point or job_entry_point)
    if dockerfile_override:
        path = _within(root, dockerfile_override)
        if path is None or files.text(path) is None:
            raise _never(
                "LW-DOCKERFILE-MISSING",
                f"the source has no Dockerfile {dockerfile_override!r} (looked for in {root!r})",
                "correct overrides.dockerfile, or the job's",
            )
        return _own(files, path, root, command, python_version)
    beside = _beside_entry_point(files, root, job_entry_point or entry_point)
    if beside is not None:
        folder = posixpath.dirname(beside) or "."
        rewritten = _rewritten(command, folder) if folder != root else command
        return _own(files, beside, folder, rewritten, python_version)
    base = Base(
        image=base_image or f"python:{_python(python_version or DEFAULT_PYTHON)}-slim",
        python_version=_python(python_version) if python_version else "",
        may_lack_python=may_lack_python,
        has_bash=may_lack_python or not base_image,
    )
    return _generated(files, base, entry_point=command, installer=installer, cache_mounts=cache_mounts)


def _build_context(files: SourceFiles, build_context: str) -> str:
    root = _within(".", build_context or ".")
    if root is None or not (root == "." or files.is_folder(root)):
        raise _never(
            "LW-BUILD-CONTEXT",
            f"the source has no folder {build_context!r} to build in",
            "correct the job's build context",
        )
    return root


def _own(
    files: SourceFiles, path: str, context: str, entry_point: tuple[str, ...], python_version: str
) -> Recipe:
    text = files.text(path)
    assert text is not None
    # Docker prefers the ignore file that is named after the Dockerfile.
    ignore = files.text(f"{path}.dockerignore")
    if ignore is None:
        ignore = files.text(posixpath.normpath(f"{context}/.dockerignore"))
    return Recipe(
        dockerfile=text,
        context=context,
        bases=external_images(text),
        entry_point=entry_point,
        generated=False,
        python_version=python_version,
        ignore=ignore or "",
    )


def _beside_entry_point(files: SourceFiles, root: str, entry_point: Sequence[str]) -> str | None:
    """`Dockerfile.wandb` beside the entrypoint's file. W&B takes an override's first or second word for that file, and
    the last one of a job's own command; both are looked at."""
    words = list(entry_point)
    is_script = bool(words) and words[0].endswith((".py", ".sh"))
    for candidate in words[:1] if is_script else [*words[1:2], *words[-1:]] or [""]:
        path = _within(root, posixpath.join(posixpath.dirname(candidate), WANDB_DOCKERFILE))
        if path is not None and files.text(path) is not None:
            return path
    return None


def _rewritten(words: tuple[str, ...], folder: str) -> tuple[str, ...]:
    """The command from within `folder`, by W&B's rule (`EntryPoint.update_entrypoint_path`): only two words, of which
    the first is a python or bash, are changed."""
    if len(words) == 2 and (words[0].startswith("python") or words[0] == "bash"):
        path = posixpath.normpath(words[1])
        return (words[0], posixpath.basename(path)) if posixpath.dirname(path) == folder else words
    return words


def _generated(
    files: SourceFiles, base: Base, *, entry_point: tuple[str, ...], installer: str, cache_mounts: bool
) -> Recipe:
    """W&B generates for the whole source whatever the build context is: entrypoints are relative to its root."""
    if not entry_point:
        raise _never(
            "LW-NO-ENTRYPOINT",
            "the launch carries code, but nothing says what to run, and the source has no Dockerfile of its own",
            'give overrides.entry_point, for example ["python", "train.py"], or overrides.dockerfile',
        )
    if not _IMAGE.fullmatch(base.image):
        raise _never("LW-BASE-IMAGE", f"{base.image!r} is not the name of an image", "correct the base image")
    dependencies = _dependencies(files)
    dockerfile = generated_dockerfile(base, dependencies, cache_mounts=cache_mounts)
    installs = ((INSTALLER, installer),) if INSTALLER in dockerfile else ()
    warnings = dependencies.warnings
    if files.text("Dockerfile") is not None:
        unused = (
            'the source\'s Dockerfile is not used: name it in overrides.dockerfile ("Dockerfile") to build it'
        )
        warnings = (*warnings, unused)
    return Recipe(
        dockerfile=dockerfile,
        context=".",
        bases=(base.image,),
        entry_point=entry_point,
        generated=True,
        python_version=base.python_version or DEFAULT_PYTHON,
        warnings=warnings,
        ignore=files.text(".dockerignore") or "",
        added=(*dependencies.added, *installs),
        needed=frozenset(dependencies.copied) | frozenset(filter(None, (dependencies.wheels,))),
    )


def _dependencies(files: SourceFiles) -> Dependencies:
    try:
        return read_dependencies(files.text, files.is_folder)
    except ValueError as error:
        raise _never("LW-PYPROJECT", f"pyproject.toml cannot be read: {error}", "correct it") from error


def _python(version: str) -> str:
    """`3.11.4` → `3.11`, as W&B truncates it."""
    match = _PYTHON.fullmatch(version.strip().removeprefix("python-"))
    if match is None:
        raise _never("LW-PYTHON-VERSION", f"{version!r} is no Python version", "write it as 3.11")
    return f"{match[1]}.{match[2]}" if match[2] else match[1]


def _within(root: str, path: str) -> str | None:
    """`path`, relative to the folder `root`, as one path from the source's root; None if it leads out."""
    if posixpath.isabs(path):
        return None
    joined = posixpath.normpath(posixpath.join(root, path))
    return None if joined == ".." or joined.startswith("../") else joined


def _never(code: str, what: str, remedy: str) -> Never:
    return Never(f"{what}; {remedy}", code=code, stage=Stage.BUILD)
