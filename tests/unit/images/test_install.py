"""The install script of generated images: what is tried, in which order, and what is told. Real builds: integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.images.build_output import FAILED, WARNING, BuildOutput
from worker.images.install import BestEffort, indexes_of_pip, read_frozen, say, shown


class Tool:
    """Installs what is available; notes each try."""

    def __init__(self, *available: str) -> None:
        self.available = set(available)
        self.tries: list[list[str]] = []
        self.texts: list[str] = []

    def install(self, *arguments: str) -> bool:
        assert arguments[:2] == ("--no-deps", "-r")
        self.texts.append(Path(arguments[2]).read_text())
        self.tries.append([line for line in self.texts[-1].splitlines() if not line.startswith("-")])
        return set(self.tries[-1]) <= self.available


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def effort(tool: Tool, *options: str) -> BestEffort:
    return BestEffort(tool, list(options))  # type: ignore[arg-type]  # a stand-in for Pip and Uv


def test_all_at_once_where_all_is_there() -> None:
    tool = Tool("a", "b", "c")
    tried = effort(tool, "--find-links https://example.org/x")
    tried.try_all(["a", "b", "c"])
    assert (tool.tries, tried.failed) == ([["a", "b", "c"]], [])
    assert tool.texts[0].startswith("--find-links https://example.org/x\n")
    assert list(Path().iterdir()) == []


def test_what_fails_is_found_by_halves() -> None:
    wanted = [str(number) for number in range(64)]
    tool = Tool(*(set(wanted) - {"17", "40"}))
    tried = effort(tool)
    tried.try_all(wanted)
    assert (sorted(tried.failed), tried.installed) == (["17", "40"], 62)
    assert len(tool.tries) < 30


def test_nothing_at_all_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        effort(Tool()).try_all([str(number) for number in range(20)])
    assert ended.value.code == 1
    assert "is there an index that the build can reach?" in capsys.readouterr().out


def test_few_that_fail_are_told() -> None:
    tried = effort(Tool())
    tried.try_all(["a", "b"])
    assert tried.failed == ["a", "b"]


@pytest.mark.parametrize(
    ("available", "installed", "told"),
    [("torch==2.3.0+cu121", 1, ""), ("torch==2.3.0", 1, "in the place of torch==2.3.0+cu121"), ("x", 0, "")],
)
def test_versions_of_one_machine(
    available: str, installed: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = effort(Tool(available))
    tried.try_local("torch==2.3.0+cu121")
    assert (tried.installed, len(tried.failed)) == (installed, 1 - installed)
    assert told in capsys.readouterr().out


def test_options_of_the_list_are_told_from_packages(tmp_path: Path) -> None:
    file = tmp_path / "frozen.txt"
    file.write_text("--find-links https://example.org/x\n-e git+https://example.org/y.git\n\n# no\na==1\n")
    assert read_frozen(str(file)) == (
        ["--find-links https://example.org/x"],
        ["-e git+https://example.org/y.git", "a==1"],
    )


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("torch==2.3.0+cu121 ; python_version > '3'", "torch==2.3.0+cu121"),
        ("a[b]>=1", "a[b]>=1"),
        ("x @ https://me:secret@example.org/x.whl", "x"),
        ("-e git+https://secret@example.org/y.git", "-e git+https://example.org/y.git"),
    ],
)
def test_no_login_is_shown(requirement: str, name: str) -> None:
    assert shown(requirement) == name


def test_uv_looks_where_pip_is_told_to() -> None:
    listed = (
        "global.index-url='https://mirror.example.org/simple'\n"
        "global.no-cache-dir='true'\n"
        "install.extra-index-url='\\nhttps://a.example.org/x\\nhttps://b.example.org/x'\n"
    )
    assert indexes_of_pip(listed) == {
        "UV_DEFAULT_INDEX": "https://mirror.example.org/simple",
        "UV_INDEX": "https://a.example.org/x https://b.example.org/x",
    }
    assert indexes_of_pip("") == {}


def test_the_builder_reads_what_the_script_says(capsys: pytest.CaptureFixture[str]) -> None:
    say("not installed: a==1")
    say("not installed: b")
    say("not installed: a==1")
    say("warning: uv is old")
    lines: list[str] = []
    output = BuildOutput(lines.append)
    for line in ("Step 1", *capsys.readouterr().out.splitlines(), "#7 0.1 " + FAILED + "c"):
        output.add(line)
    assert len(lines) == 6
    assert output.failed == ("a==1", "b", "c")
    assert output.warnings == (
        "Some packages were not successfully installed during the build: a==1, b, c",
        "uv is old",
    )


def test_what_is_told_is_bounded() -> None:
    output = BuildOutput(lambda _: None)
    for number in range(1000):
        output.add(f"{WARNING}{number}{'x' * 1000}")
    assert len(output.warnings) == 200
    assert max(map(len, output.warnings)) == 200


def test_a_quiet_build_has_no_warnings() -> None:
    output: Any = BuildOutput(lambda _: None)
    output.add("not installed: by somebody else")
    assert output.warnings == ()
