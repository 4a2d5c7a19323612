"""From source files to a recipe: precedence, rewriting, what is generated, what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from worker.errors import Never, Stage
from worker.images import install
from worker.images.dockerfile import Recipe, plan_recipe


class Files:
    """A source as a dict."""

    def __init__(self, **texts: str) -> None:
        self._texts = {name.replace("__", "/"): text for name, text in texts.items()}

    @classmethod
    def of(cls, texts: dict[str, str]) -> Files:
        files = cls()
        files._texts = texts
        return files

    def text(self, path: str) -> str | None:
        return self._texts.get(path)

    def is_folder(self, path: str) -> bool:
        return any(name.startswith(f"{path}/") for name in self._texts)


def plan(texts: dict[str, str], **changes: Any) -> Recipe:
    given: dict[str, Any] = {
        "dockerfile_override": "",
        "entry_point": ("python", "train.py"),
        "base_image": "",
        "python_version": "3.11",
        "installer": "print()",
    }
    return plan_recipe(Files.of(texts), **{**given, **changes})


def test_the_named_dockerfile_comes_first() -> None:
    recipe = plan(
        {
            "docker/D": "FROM a",
            "Dockerfile.wandb": "FROM b",
            "requirements.txt": "wandb",
            ".dockerignore": "x",
        },
        dockerfile_override="./docker/D",
        entry_point=("python", "src/train.py"),
    )
    assert recipe == Recipe(
        dockerfile="FROM a",
        context=".",
        bases=("a",),
        entry_point=("python", "src/train.py"),
        generated=False,
        python_version="3.11",
        ignore="x",
    )


def test_a_dockerfile_has_an_ignore_file_of_its_own() -> None:
    texts = {"D": "FROM a", ".dockerignore": "general", "D.dockerignore": ""}
    assert plan(texts, dockerfile_override="D").ignore == ""


def test_build_context_is_where_the_dockerfile_is_looked_for() -> None:
    texts = {"app/D": "FROM app", "D": "FROM root", "app/.dockerignore": "x"}
    recipe = plan(texts, dockerfile_override="D", build_context="./app/", entry_point=())
    assert (recipe.context, recipe.bases, recipe.entry_point, recipe.ignore) == ("app", ("app",), (), "x")
    assert plan(texts, dockerfile_override="../D", build_context="app").bases == ("root",)


@pytest.mark.parametrize("path", ["missing", "../Dockerfile", "/etc/passwd", "a/../../Dockerfile", "folder"])
def test_a_named_dockerfile_that_is_not_there(path: str) -> None:
    with pytest.raises(Never, match=r"correct overrides\.dockerfile") as raised:
        plan({"Dockerfile": "FROM a", "folder/x": ""}, dockerfile_override=path)
    assert (raised.value.code, raised.value.stage) == ("LW-DOCKERFILE-MISSING", Stage.BUILD)


@pytest.mark.parametrize("folder", ["missing", "..", "/tmp", "x"])
def test_a_build_context_that_is_not_there(folder: str) -> None:
    with pytest.raises(Never, match="no folder") as raised:
        plan({"x": ""}, build_context=folder)
    assert raised.value.code == "LW-BUILD-CONTEXT"


@pytest.mark.parametrize(
    ("entry_point", "rewritten"),
    [
        (("python", "src/train.py"), ("python", "train.py")),
        (("python3.11", "./src/train.py"), ("python3.11", "train.py")),
        (("bash", "src/run.sh"), ("bash", "run.sh")),
        (("sh", "src/run.sh"), ("sh", "src/run.sh")),
        (("python", "src/train.py", "--fast"), ("python", "src/train.py", "--fast")),
        (("python", "-u", "src/train.py"), ("python", "-u", "src/train.py")),
        (("src/run.sh",), ("src/run.sh",)),
    ],
)
def test_dockerfile_wandb_beside_the_entrypoint(
    entry_point: tuple[str, ...], rewritten: tuple[str, ...]
) -> None:
    texts = {"src/Dockerfile.wandb": "FROM a", "requirements.txt": "", "src/.dockerignore": "x"}
    recipe = plan(texts, entry_point=entry_point)
    assert (recipe.context, recipe.entry_point, recipe.generated, recipe.ignore) == (
        "src",
        rewritten,
        False,
        "x",
    )


def test_the_image_does_not_depend_on_the_override() -> None:
    """The Dockerfile is looked for where the job's own command lies; an override is rewritten if it lies there, too."""
    texts = {"src/Dockerfile.wandb": "FROM a", "other/Dockerfile.wandb": "FROM b"}
    job = ("python", "src/train.py")
    for override, command in (
        ((), ("python", "train.py")),
        (("python", "src/eval.py"), ("python", "eval.py")),
        (("python", "other/eval.py"), ("python", "other/eval.py")),
    ):
        recipe = plan(texts, entry_point=override, job_entry_point=job)
        assert (recipe.dockerfile, recipe.context, recipe.entry_point) == ("FROM a", "src", command)


def test_dockerfile_wandb_in_the_root_rewrites_nothing() -> None:
    for entry_point in (("python", "train.py"), (), ("train.py",)):
        recipe = plan({"Dockerfile.wandb": "FROM a"}, entry_point=entry_point)
        assert (recipe.context, recipe.entry_point) == (".", entry_point)


def test_dockerfile_wandb_elsewhere_is_not_taken() -> None:
    texts = {"Dockerfile.wandb": "FROM a", "x/Dockerfile.wandb": "FROM b"}
    for entry_point in (("python", "src/train.py"), ("python", "/x/train.py"), ("python", "../x/train.py")):
        assert plan(texts, entry_point=entry_point).generated


def test_generated_from_requirements() -> None:
    recipe = plan({"requirements.txt": "wandb\nnumpy # fast", "train.py": ""})
    assert recipe.dockerfile == (
        "FROM python:3.11-slim AS base\n"
        "USER root\n"
        "ENV PYTHONUNBUFFERED=1 SHELL=/bin/bash\n"
        "WORKDIR /opt/ml/code\n"
        "FROM base AS build\n"
        'COPY [".launch-worker/install.py", "./.launch-worker/install.py"]\n'
        'COPY ["requirements.txt", "./requirements.txt"]\n'
        "RUN PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 PIP_NO_CACHE_DIR=1"
        ' "$(command -v python3.11 || command -v python3 || command -v python)" .launch-worker/install.py'
        " --requirements requirements.txt --python 3.11\n"
        "FROM base\n"
        'COPY --from=build ["/env", "/env"]\n'
        "ENV VIRTUAL_ENV=/env PATH=/env/bin:$PATH\n"
        'COPY [".", "./"]\n'
    )
    assert (recipe.generated, recipe.bases, recipe.warnings) == (True, ("python:3.11-slim",), ())
    assert recipe.needed == {"requirements.txt"}
    assert recipe.added == ((".launch-worker/install.py", "print()"),)


def test_cache_mounts_are_for_buildkit_only() -> None:
    texts = {"requirements.txt": "wandb"}
    assert "--mount" not in plan(texts).dockerfile
    cached = plan(texts, cache_mounts=True).dockerfile
    mounts = (f"--mount=type=cache,target=/root/.cache/{tool}" for tool in ("pip", "uv"))
    assert f"RUN {' '.join(mounts)} PIP_" in cached
    assert "PIP_NO_CACHE_DIR" not in cached


def test_an_accelerator_image_gets_a_python_and_an_environment() -> None:
    text = plan(
        {"train.py": ""}, base_image="nvidia/cuda:12", may_lack_python=True, python_version="3.10"
    ).dockerfile
    assert text.startswith("FROM nvidia/cuda:12 AS base\n")
    assert "apt-get install -y -qq --no-install-recommends python3.10 python3-pip" in text
    assert ".launch-worker/install.py --python 3.10\n" in text
    assert (
        "python3 python3-pip" in plan({}, base_image="x", may_lack_python=True, python_version="").dockerfile
    )


@pytest.mark.parametrize(
    ("commands", "status", "told"),
    [
        ({"python3": "exit 9"}, 0, []),
        ({"python": "exit 9"}, 0, []),
        (
            {"apt-get": 'echo "$*"', "rm": "true"},
            0,
            ["update -qq", "install -y -qq --no-install-recommends python3.10 python3-pip ca-certificates"],
        ),
        (
            {"apt-get": '[ "$1" = update ]', "rm": "true"},
            1,
            ["[launch-worker] apt-get of the base image cannot"],
        ),
        ({}, 1, ["[launch-worker] the base image has no Python, and no apt-get"]),
    ],
)
def test_how_an_accelerator_image_gets_a_python(
    tmp_path: Path, commands: dict[str, str], status: int, told: list[str]
) -> None:
    """The step itself, with the commands that such an image has."""
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    text = plan({}, base_image="nvidia/cuda:12", may_lack_python=True, python_version="3.10").dockerfile
    (step,) = [line.removeprefix("RUN ") for line in text.splitlines() if "apt-get" in line]
    done = subprocess.run(
        ["/bin/sh", "-c", step], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True)), lines


def test_uv_is_the_one_that_is_tested() -> None:
    constraints = (Path(__file__).parents[3] / "constraints.txt").read_text().splitlines()
    assert install.UV in constraints


def test_requirements_that_name_other_files() -> None:
    texts = {
        "requirements.txt": "-r reqs/base.txt\n--constraint=pins.txt\n-r ../outside.txt\n-r missing.txt",
        "reqs/base.txt": "wandb\n-r more.txt",
        "reqs/more.txt": "-r base.txt",
        "pins.txt": "wandb==1",
    }
    recipe = plan(texts)
    assert recipe.needed == {"requirements.txt", "reqs/base.txt", "reqs/more.txt", "pins.txt"}
    assert 'COPY ["reqs/more.txt", "./reqs/more.txt"]\n' in recipe.dockerfile
    assert recipe.warnings == ()


@pytest.mark.parametrize(
    ("line", "needs_code"),
    [
        ("-e .", True),
        (".[extra]", True),
        ("./lib", True),
        ("--editable ./lib", True),
        ("-f wheels", True),
        ("vendor/x-1.0-py3-none-any.whl", True),
        ("x @ file:vendor/x.whl", True),
        ("-e git+https://example.org/x.git#egg=x", False),
        ("--find-links https://example.org/w", False),
        ("https://example.org/x.whl", False),
        ("x @ https://example.org/x.zip", False),
        ("numpy>=1.2", False),
        ("python-dateutil", False),
    ],
)
def test_code_comes_first_where_the_requirements_need_it(line: str, needs_code: bool) -> None:
    steps = plan({"requirements.txt": f"wandb\n{line}\n"}).dockerfile.splitlines()
    assert (
        steps.index('COPY [".", "./"]') < steps.index(next(s for s in steps if s.startswith("RUN")))
    ) is needs_code
    assert ('COPY --from=build ["/opt/ml/code", "./"]' in steps) is needs_code


def test_generated_from_pyproject() -> None:
    recipe = plan(
        {"pyproject.toml": '[project]\ndependencies = ["wandb>=0.20", "numpy ; python_version>\'3\'"]'}
    )
    assert recipe.added[0] == (".launch-worker/requirements.txt", "wandb>=0.20\nnumpy ; python_version>'3'\n")
    copied = recipe.dockerfile.index('COPY [".launch-worker/requirements.txt"')
    assert copied < recipe.dockerfile.index("install.py --req") < recipe.dockerfile.index('COPY [".", "./"]')
    assert recipe.warnings == ()


def test_generated_from_a_frozen_environment_leaves_out_what_cannot_be_installed() -> None:
    texts = {
        "pyproject.toml": "[tool.x]",
        "requirements.frozen.txt": "wandb==0.31.1.dev1\ntorch==2.1+cu118\n",
    }
    recipe = plan(texts)
    assert dict(recipe.added)[".launch-worker/requirements.txt"] == "wandb\ntorch==2.1+cu118\n"
    assert "--requirements .launch-worker/requirements.txt --python 3.11 --best-effort\n" in recipe.dockerfile


def test_nothing_to_install_is_accepted_with_a_warning() -> None:
    for texts in ({"train.py": ""}, {"pyproject.toml": "[project]\ndynamic = ['dependencies']"}):
        recipe = plan(texts)
        assert "RUN" not in recipe.dockerfile
        assert [warning for warning in recipe.warnings if "no packages are installed" in warning]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements.frozen.txt"])
def test_missing_wandb_is_warned_of(name: str) -> None:
    (warning,) = plan({name: "numpy\n# wandb"}).warnings
    assert warning.startswith(f"wandb is not in {name}")


def test_a_dockerfile_that_nobody_named_is_warned_of() -> None:
    recipe = plan({"Dockerfile": "FROM a", "requirements.txt": "wandb"})
    assert recipe.generated
    assert recipe.warnings == (
        'the source\'s Dockerfile is not used: name it in overrides.dockerfile ("Dockerfile") to build it',
    )


@pytest.mark.parametrize("folder", ["wheelhouse", ".wheels"])
def test_a_wheelhouse_is_the_only_place_to_look(folder: str) -> None:
    recipe = plan({"requirements.txt": "wandb", f"{folder}/x.whl": ""})
    assert (
        f"install.py --requirements requirements.txt --wheels {folder} --python 3.11\n" in recipe.dockerfile
    )
    assert f'COPY ["{folder}/", "./{folder}/"]\n' in recipe.dockerfile
    assert folder in recipe.needed


@pytest.mark.parametrize(
    ("base_image", "version", "base", "python"),
    [
        ("", "3.12.4", "python:3.12-slim", "3.12"),
        ("", "python-3.10", "python:3.10-slim", "3.10"),
        ("", "3", "python:3-slim", "3"),
        ("", "", "python:3.11-slim", "3.11"),
        ("nvcr.io/nvidia/pytorch:24.01-py3", "3.9", "nvcr.io/nvidia/pytorch:24.01-py3", "3.9"),
        ("h:5000/x@sha256:" + "a" * 64, "3.9", "h:5000/x@sha256:" + "a" * 64, "3.9"),
    ],
)
def test_base_image_and_python(base_image: str, version: str, base: str, python: str) -> None:
    recipe = plan({}, base_image=base_image, python_version=version)
    assert recipe.dockerfile.startswith(f"FROM {base}\n")
    assert (recipe.bases, recipe.python_version) == ((base,), python)


@pytest.mark.parametrize(
    ("code", "texts", "changes"),
    [
        ("LW-NO-ENTRYPOINT", {"train.py": ""}, {"entry_point": ()}),
        ("LW-BASE-IMAGE", {}, {"base_image": "a\nRUN evil"}),
        ("LW-BASE-IMAGE", {}, {"base_image": "a # b"}),
        ("LW-BASE-IMAGE", {}, {"base_image": "--platform=x"}),
        ("LW-PYTHON-VERSION", {}, {"python_version": "3.11 AS x"}),
        ("LW-PYPROJECT", {"pyproject.toml": "[project"}, {}),
        ("LW-PYPROJECT", {"pyproject.toml": "a = " + "[" * 100_000}, {}),
        ("LW-PYPROJECT", {"pyproject.toml": "[project]\ndependencies = 'x'"}, {}),
    ],
)
def test_refused(code: str, texts: dict[str, str], changes: dict[str, Any]) -> None:
    with pytest.raises(Never) as raised:
        plan(texts, **changes)
    assert (raised.value.code, raised.value.stage) == (code, Stage.BUILD)
    assert "; " in str(raised.value)


def test_the_entrypoint_is_not_in_the_image_and_build_context_does_not_change_the_generated_one() -> None:
    texts = {"app/train.py": "", "requirements.txt": "wandb"}
    first = plan(texts, entry_point=("python", "a.py"))
    second = plan(texts, entry_point=("python", "b.py"), build_context="app")
    assert (first.dockerfile, first.context) == (second.dockerfile, second.context)
