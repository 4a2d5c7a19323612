"""House rules about the repository itself, as tests: what no file may say, and how large code may grow."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.settings import load_settings

ROOT = Path(__file__).parents[2]

MODULE_LINES = 320
TABLES = {"worker/settings.py": 520}
"""Modules that are lists of fields, one after another, and nothing else to speak of."""
FUNCTION_LINES = 60

# Written in halves, so that this file passes its own test.
FORBIDDEN = {
    "a package registry's host": r"(py"
    r"pi|pytho"
    r"nhosted|registry\.np"
    r"mjs|crat"
    r"es|proxy\.gol"
    r"ang)\.(org|io)",
    "a package index option": r"--(extra-)?in" r"dex-url|in" r"dex_url\s*=",
    "a path of somebody's machine": r"(?<![\w.:*}-])/(ho" r"me|Us" r"ers|wo" r"rk|ro" r"ot)/\w",
    "unfinished work": r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b",
}


def tracked_files() -> list[Path]:
    """All text files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()]


def modules() -> list[Path]:
    return sorted([*(ROOT / "worker").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its decorators and docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def load_yaml(name: str) -> Any:
    # PyYAML comes with moto and pre-commit; its stubs do not, so it is not imported by name.
    return importlib.import_module("yaml").safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_names(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a package registry's host", "see https://py" + "pi.org/project/wandb"),
        ("a package index option", "pip install --in" + "dex-url X"),
        ("a path of somebody's machine", 'open("/ho' + 'me/jane/x")'),
        ("a path of somebody's machine", "cd /wo" + "rk/main"),
        ("unfinished work", "# TO" + "DO: later"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


def test_the_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License")
    assert "Version 2.0, January 2004" in text
    assert "   END OF TERMS AND CONDITIONS\n" in text
    assert "\n   Copyright 2026 The launch-worker authors\n" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_keep_the_budgets(path: Path) -> None:
    """A module over 320 lines or a function over 60 has two subjects: find the second one's name."""
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "every module says in its docstring what it is for"
    assert len(source.splitlines()) <= TABLES.get(str(path.relative_to(ROOT)), MODULE_LINES)
    too_long = {node.name: code_lines(node) for node in functions(tree) if code_lines(node) > FUNCTION_LINES}
    assert not too_long


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in modules()}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-localstack.txt"])
def test_constraints_are_exact_versions_and_nothing_else(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)]


def test_constraints_pin_every_direct_dependency() -> None:
    pins = {
        canonical(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    project = (ROOT / "pyproject.toml").read_text()
    direct = {
        canonical(name)
        for name in re.findall(r'^    "([A-Za-z0-9_-]+)(?:\[.*?\])?[>=]', project, re.MULTILINE)
    }
    assert len(direct) > 20
    assert direct <= pins


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_compose_file() -> None:
    compose = load_yaml("docker-compose.yml")
    services = compose["services"]
    assert set(services) == {"localstack", "dev", "init", "worker-image", "worker", "mirror"}
    for service in services.values():
        if build := service.get("build"):
            assert (ROOT / build["dockerfile"]).is_file()
    assert "profiles" not in services["worker"]
    assert services["mirror"]["profiles"] == ["mirror"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert set(compose["volumes"]) == {"localstack", "ledger", "work"}


def test_the_volumes_of_the_worker_are_folders_of_its_image() -> None:
    worker = load_yaml("docker-compose.yml")["services"]["worker"]
    mounted = {folder for _, _, folder in (volume.partition(":") for volume in worker["volumes"])}
    mounted.discard("/var/run/docker.sock")
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert mounted == set(re.findall(r"^VOLUME (\S+)$", dockerfile, re.MULTILINE))
    work_dir = re.search(r"^ENV LAUNCH_WORK_DIR=(\S+)$", dockerfile, re.MULTILINE)
    assert work_dir
    assert work_dir[1] in mounted


def test_compose_gives_the_worker_time_to_drain() -> None:
    grace = load_settings(None, {}).shutdown_grace
    assert (
        float(load_yaml("docker-compose.yml")["services"]["worker"]["stop_grace_period"].rstrip("s")) > grace
    )


def test_the_image_of_the_worker_is_the_last_stage_and_not_root() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    *_, last = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)
    assert last.startswith("runtime AS worker\n")
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert 'ENTRYPOINT ["tini", "--", "launch-worker"]' in dockerfile
    copied = set(re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE))
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name.rstrip("*") for names in copied for name in names.split()} == allowed


def test_pre_commit_runs_what_make_check_runs() -> None:
    hooks = [hook for repo in load_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in load_yaml(".pre-commit-config.yaml")["repos"]} == {"local"}
    makefile = (ROOT / "Makefile").read_text()
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert check
    in_make = {line.strip().replace("$(BIN)/", "") for line in check[1].splitlines()}
    in_hooks = {hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks}
    assert in_hooks == in_make


def test_make_explains_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE)
    assert targets == [
        *("help", "setup", "demo", "dev", "check", "fmt", "test", "test-localstack"),
        *("chaos", "bench", "bench-quick", "bench-page", "clean"),
    ]


@pytest.mark.parametrize("name", [".ci/run", "deploy/local/setup", "deploy/local/with-dockerd"])
def test_scripts_are_executable_and_parse(name: str) -> None:
    script = ROOT / name
    assert script.stat().st_mode & 0o111
    shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    subprocess.run([shell, "-n", str(script)], check=True)
