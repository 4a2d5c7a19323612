"""The context's tar: what is in it, and that it is the same everywhere."""

from __future__ import annotations

import os
import socket
import tarfile
from pathlib import Path

import pytest

from worker.errors import Never
from worker.images.context import DOCKERFILE, ContextFacts, SourceFolder, installer, write_context
from worker.images.dockerfile import Recipe, plan_recipe
from worker.images.generated import INSTALLER


def recipe(ignore: str = "", **changes: object) -> Recipe:
    given: dict[str, object] = {
        "dockerfile": "FROM a\n",
        "context": ".",
        "bases": ("a",),
        "entry_point": (),
        "generated": False,
        "python_version": "3.11",
        "ignore": ignore,
    }
    return Recipe(**{**given, **changes})  # type: ignore[arg-type]


def fill(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(target: Path) -> list[str]:
    with tarfile.open(target) as archive:
        return archive.getnames()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    return root


async def pack(root: Path, what: Recipe) -> tuple[ContextFacts, list[str]]:
    target = root.parent / "context.tar"
    facts = await write_context(root, what, target)
    assert facts.bytes == target.stat().st_size
    return facts, names(target)


async def test_the_same_source_gives_the_same_digest_elsewhere_and_later(tmp_path: Path) -> None:
    texts = {"b.py": "b", "a/x": "x", "a.py": "a", "z/é.txt": "é", "run.sh": "#!"}
    digests = set()
    for number, order in enumerate((list(texts), sorted(texts, reverse=True))):
        root = tmp_path / f"at-{number}"
        fill(root, {name: texts[name] for name in order})
        (root / "run.sh").chmod(0o755 - number)  # 0755 and 0754: executable is executable
        (root / "b.py").chmod(0o644 - 0o4 * number)
        (root / "empty").mkdir()
        (root / "link").symlink_to("a/x")
        os.utime(root / "a.py", (number * 1e9, number * 1e9))
        digests.add(await write_context(root, recipe(), tmp_path / f"{number}.tar"))
    (facts,) = digests
    assert facts.digest.startswith("sha256:")
    assert facts.files == 7


async def test_a_change_changes_the_digest(source: Path) -> None:
    fill(source, {"a": "1"})
    seen = {(await pack(source, recipe()))[0].digest}
    (source / "a").chmod(0o755)
    seen.add((await pack(source, recipe()))[0].digest)
    (source / "a").write_text("2")
    seen.add((await pack(source, recipe()))[0].digest)
    seen.add((await pack(source, recipe(dockerfile="FROM b")))[0].digest)
    assert len(seen) == 4


async def test_members_are_normalised(source: Path) -> None:
    fill(source, {"x/run.sh": "#!/bin/sh\n"})
    (source / "x" / "run.sh").chmod(0o4711)
    (source / "x" / "l").symlink_to("run.sh")
    await pack(source, recipe())
    with tarfile.open(source.parent / "context.tar") as archive:
        members = {member.name: member for member in archive.getmembers()}
        dockerfile = archive.extractfile(DOCKERFILE)
        assert dockerfile is not None
        assert dockerfile.read() == b"FROM a\n"
    assert {name: oct(member.mode) for name, member in members.items()} == {
        DOCKERFILE: "0o644",
        "x": "0o755",
        "x/l": "0o777",
        "x/run.sh": "0o755",
    }
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members.values()} == {
        (0, 0, "", "", 315_532_800)
    }
    assert not any(m.pax_headers for m in members.values())


async def test_links_stay_within_the_root(source: Path) -> None:
    fill(source.parent, {"secret": "s"})
    fill(source, {"a/b/c": "c", "outer/x": ""})
    links = {
        "in": "a/b/c",
        "a/up": "../outer/x",
        "dangling": "nowhere",
        "folder": "a",
        "a/b/root": "../..",
        "out": "../secret",
        "absolute": str(source / "a"),
        "a/far": "../../secret",
        "sly": "a/b/root/../secret",
    }
    for name, to in links.items():
        (source / name).symlink_to(to)
    facts, sent = await pack(source, recipe())
    assert set(facts.left_out) == {"out", "absolute", "a/far", "sly"}
    assert set(links) & set(sent) == {"in", "a/up", "dangling", "folder", "a/b/root"}
    assert "folder/b/c" not in sent


async def test_git_sockets_and_pipes_are_left_out(source: Path) -> None:
    fill(source, {".git/config": "", "sub/.git": "gitdir: x", "sub/.gitignore": "", "a": ""})
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(source / "s"))
        facts, sent = await pack(source, recipe())
    assert sent == [DOCKERFILE, "a", "sub", "sub/.gitignore"]
    assert facts.left_out == ("pipe", "s")


async def test_ignored_files_are_not_sent_but_for_exceptions_and_what_is_needed(source: Path) -> None:
    fill(
        source,
        {".dockerignore": "", "a.py": "", "data/big": "", "data/keep/x": "", "reqs/r.txt": "", "w/x.whl": ""},
    )
    what = recipe("*\n!a.py\n!data/keep", needed=frozenset({"reqs/r.txt", "w"}))
    _, sent = await pack(source, what)
    expected = [
        ".dockerignore",
        "a.py",
        "data",
        "data/keep",
        "data/keep/x",
        "reqs",
        "reqs/r.txt",
        "w",
        "w/x.whl",
    ]
    assert sent == [DOCKERFILE, *expected]


async def test_an_exception_with_a_wildcard_reaches_into_ignored_folders(source: Path) -> None:
    fill(source, {"a/b/x.py": "", "a/b/x.csv": "", "c/y.csv": ""})
    _, sent = await pack(source, recipe("*\n!**/*.py"))
    assert sent == [DOCKERFILE, "a", "a/b", "a/b/x.py"]


async def test_context_folder_and_added_files(source: Path) -> None:
    fill(source, {"app/x": "", "other": "", "app/.launch-worker/Dockerfile": "FROM evil"})
    what = recipe(context="app", added=((".launch-worker/requirements.txt", "wandb\n"),))
    facts, sent = await pack(source, what)
    assert sent == [DOCKERFILE, ".launch-worker/requirements.txt", "x"]
    assert facts.files == 3


@pytest.mark.timeout(30)  # what is not in proportion takes hours
async def test_thousands_of_files_beside_many_patterns(source: Path) -> None:
    for folder in range(30):
        fill(source, {f"d{folder}/f{number}.py": "x" for number in range(100)})
    facts, _ = await pack(source, recipe("**/*.pyc\n**/node_modules\n*.md\n!README.md\n" * 5))
    assert facts.files == 3001


async def test_bad_patterns_are_refused(source: Path) -> None:
    with pytest.raises(Never, match="dockerignore line 1"):
        await pack(source, recipe("["))


def test_source_folder_reads_what_is_inside(source: Path) -> None:
    fill(source.parent, {"secret": "s"})
    fill(source, {"a/b": "\ufefftext", "big": "x" * (1 << 20) + "x"})
    (source / "out").symlink_to("../secret")
    (source / "loop").symlink_to("loop")
    (source / "in").symlink_to("a")
    files = SourceFolder(source)
    assert files.text("a/b") == files.text("in/b") == "text"
    for path in ("out", "../secret", "a", "missing", "loop", "x" * 5000, "nul\0"):
        assert files.text(path) is None
    assert files.is_folder("in")
    assert files.is_folder(".")
    assert not files.is_folder("..")
    with pytest.raises(Never, match="larger than 1 MiB"):
        files.text("big")


async def test_from_a_folder_to_its_context(source: Path) -> None:
    fill(
        source,
        {
            "requirements.txt": "wandb",
            "train.py": "",
            "wheelhouse/x.whl": "",
            ".dockerignore": "*.txt\nwheelhouse",
        },
    )
    what = plan_recipe(
        SourceFolder(source),
        dockerfile_override="",
        entry_point=("python", "train.py"),
        base_image="",
        python_version="3.11",
        installer=installer(),
    )
    _, sent = await pack(source, what)
    assert sent == [
        DOCKERFILE,
        INSTALLER,
        ".dockerignore",
        "requirements.txt",
        "train.py",
        "wheelhouse",
        "wheelhouse/x.whl",
    ]
