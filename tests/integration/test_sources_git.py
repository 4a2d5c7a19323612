"""Sources from git: the real git client against a real git server over https, and over a stand-in for ssh."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.git_server import (
    PATH,
    GitServer,
    commit,
    git,
    make_repository,
    make_ssh,
    running_git_server,
)
from tests.unit.waiting import until
from worker.errors import Again, Never, Stage, Throttled, Unreachable
from worker.launch.message import CodeSource
from worker.sources.checkout import Checkout, SourceLimits
from worker.sources.fetch import Sources
from worker.sources.git import GitClient
from worker.sources.git_credentials import GitCredentials

TOKEN = "s3cr3t-t0ken"


@dataclass
class Bench:
    """A git host, a worker's home with git configuration, and its sources."""

    server: GitServer
    folder: Path

    @property
    def repositories(self) -> Path:
        return self.server.root

    @property
    def work_dir(self) -> Path:
        return self.folder / "work"

    def environ(self, **more: str) -> dict[str, str]:
        home = self.folder / "home"
        return {"PATH": PATH, "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", **more}

    def configure(self, key: str, value: str) -> None:
        """A line in the git configuration of the worker's user."""
        git(self.folder, "config", "--file", str(self.folder / "home/.gitconfig"), "--add", key, value)

    def sources(
        self,
        *,
        credentials: str = "",
        hosts: tuple[str, ...] = (),
        limits: SourceLimits | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Sources:
        client = GitClient(
            environ=self.environ() if environ is None else environ,
            credentials=GitCredentials(SecretStr(credentials)),
            allowed_hosts=hosts,
        )
        none: Any = None  # git needs no S3
        return Sources(s3=none, git=client, work_dir=self.work_dir, limits=limits or SourceLimits())

    async def fetch(self, uri: str, version: str = "", **options: Any) -> tuple[Checkout, dict[str, str]]:
        """The checkout, and its files by name while it lasts."""
        async with self.sources(**options).checkout(CodeSource(uri, version)) as checkout:
            return checkout, read_tree(checkout.path)

    async def refusal(self, uri: str, version: str = "", **options: Any) -> Never:
        with pytest.raises(Never) as caught:
            await self.fetch(uri, version, **options)
        assert caught.value.stage is Stage.AGENT
        return caught.value

    def left(self) -> list[str]:
        return [path.name for path in self.work_dir.iterdir()]


def read_tree(root: Path) -> dict[str, str]:
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        str(path.relative_to(root)): f"-> {path.readlink()}"
        if path.is_symlink()
        else path.read_bytes().decode()
        for path in paths
    }


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    for name in ("home", "work", "repositories"):
        (tmp_path / name).mkdir()
    async with running_git_server(tmp_path) as server:
        bench = Bench(server, tmp_path)
        bench.configure("http.sslCAInfo", str(server.certificate))
        yield bench
        assert bench.left() == [], "something was left in the work folder"


@pytest.fixture
def history(bench: Bench) -> dict[str, str]:
    """A repository `acme/nlp.git` with branches, tags and an abandoned commit; names → commits."""
    folder = bench.repositories / "acme/nlp.git"
    ids = {"first": make_repository(folder, {"train.py": "1", "src/model.py": "m"})}
    git(folder, "tag", "light")
    git(folder, "tag", "-a", "v1.0", "-m", "release")
    ids["second"] = commit(folder, {"train.py": "2"})
    git(folder, "switch", "--quiet", "--create", "feature/x")
    ids["abandoned"] = commit(folder, {"train.py": "abandoned"})
    git(folder, "reset", "--quiet", "--hard", "main")
    ids["branch"] = commit(folder, {"train.py": "x"})
    git(folder, "switch", "--quiet", "main")
    return ids


@pytest.mark.parametrize(
    ("version", "expected", "content"),
    [
        ("", "second", "2"),
        ("HEAD", "second", "2"),
        ("main", "second", "2"),
        ("feature/x", "branch", "x"),
        ("refs/heads/feature/x", "branch", "x"),
        ("light", "first", "1"),
        ("v1.0", "first", "1"),
        ("refs/tags/v1.0", "first", "1"),
    ],
)
async def test_names(
    bench: Bench, history: dict[str, str], version: str, expected: str, content: str
) -> None:
    checkout, files = await bench.fetch(bench.server.url("acme/nlp.git"), version)
    assert files == {"train.py": content, "src/model.py": "m"}
    assert checkout.commit == history[expected]
    assert checkout.content_id == f"git:{history[expected]}"
    assert checkout.origin == f"https://127.0.0.1:{bench.server.port}/acme/nlp.git"


@pytest.mark.parametrize("name", ["first", "second", "branch", "abandoned"])
async def test_full_commits_also_those_that_no_branch_leads_to(
    bench: Bench, history: dict[str, str], name: str
) -> None:
    checkout, files = await bench.fetch(bench.server.url("acme/nlp.git"), history[name].upper())
    assert checkout.commit == history[name]
    assert files["train.py"] == {"first": "1", "second": "2", "branch": "x"}.get(name, name)


@pytest.mark.parametrize("filters", [True, False])
async def test_short_commits(bench: Bench, history: dict[str, str], filters: bool) -> None:
    bench.server.filters = filters
    checkout, files = await bench.fetch(bench.server.url("acme/nlp.git"), history["first"][:7])
    assert checkout.commit == history["first"]
    assert files["train.py"] == "1"


async def test_a_branch_wins_over_a_tag_and_a_tag_over_a_commit(
    bench: Bench, history: dict[str, str]
) -> None:
    folder = bench.repositories / "acme/nlp.git"
    git(folder, "tag", "feature/x", "main")
    git(folder, "tag", history["second"][:7], "light")
    url = bench.server.url("acme/nlp.git")
    assert (await bench.fetch(url, "feature/x"))[0].commit == history["branch"]
    assert (await bench.fetch(url, history["second"][:7]))[0].commit == history["first"]


async def test_what_is_fetched_is_shallow(bench: Bench, tmp_path: Path) -> None:
    folder = bench.repositories / "long.git"
    make_repository(folder, {"a": "0"})
    (folder / "big").write_bytes(os.urandom(3_000_000))
    commit(folder, {})
    (folder / "big").unlink()
    commit(folder, {"a": "1"})
    _, files = await bench.fetch(bench.server.url("long.git"), limits=SourceLimits(source_max_bytes=100_000))
    assert files == {"a": "1"}


async def test_a_server_that_gives_out_no_single_commit_is_asked_for_all(
    bench: Bench, history: dict[str, str]
) -> None:
    bench.configure("protocol.version", "0")
    commit(bench.repositories / "acme/nlp.git", {"train.py": "3"})  # "second" is at the end of no branch now
    url = bench.server.url("acme/nlp.git")
    checkout, files = await bench.fetch(url, history["second"])
    assert (checkout.commit, files["train.py"]) == (history["second"], "2")
    refused = await bench.refusal(url, history["abandoned"])
    assert refused.code == "LW-GIT-REF"


async def test_a_head_that_names_no_branch_falls_back_to_main(bench: Bench, history: dict[str, str]) -> None:
    git(bench.repositories / "acme/nlp.git", "symbolic-ref", "HEAD", "refs/heads/gone")
    assert (await bench.fetch(bench.server.url("acme/nlp.git")))[0].commit == history["second"]


async def test_sha256_repositories(bench: Bench) -> None:
    made = make_repository(bench.repositories / "new.git", {"a": "1"}, "--object-format=sha256")
    assert len(made) == 64
    for version in ("main", made):
        checkout, files = await bench.fetch(bench.server.url("new.git"), version)
        assert (checkout.commit, files) == (made, {"a": "1"})


async def test_the_files_are_those_of_the_commit_whatever_git_is_configured_to(bench: Bench) -> None:
    folder = bench.repositories / "modes.git"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "run.sh").write_text("one\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    (folder / ".gitattributes").write_text("* text=auto\n")
    commit(folder, {})
    bench.configure("core.autocrlf", "true")
    hook = bench.folder / "home/hooks/post-checkout"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {bench.folder}/hooked\n")
    hook.chmod(0o755)
    bench.configure("core.hooksPath", str(hook.parent))
    before = os.umask(0o077)
    try:
        async with bench.sources().checkout(CodeSource(bench.server.url("modes.git"))) as checkout:
            assert read_tree(checkout.path) == {
                ".gitattributes": "* text=auto\n",
                "run.sh": "one\n",
                "link": "-> run.sh",
            }
            assert (checkout.path / "run.sh").stat().st_mode & 0o7777 == 0o755
            assert (checkout.path / ".gitattributes").stat().st_mode & 0o7777 == 0o644
    finally:
        os.umask(before)
    assert not (bench.folder / "hooked").exists()


# --- submodules


def add_submodule(folder: Path, url: str, path: str, pinned: str, name: str = "") -> None:
    name = name or path
    with (folder / ".gitmodules").open("a") as file:
        file.write(f'[submodule "{name}"]\n\tpath = {path}\n\turl = {url}\n')
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{pinned},{path}")
    git(folder, "add", ".gitmodules")
    git(folder, "commit", "--quiet", "-m", f"submodule {path}")


async def test_submodules_at_all_depths_by_absolute_and_relative_urls(bench: Bench) -> None:
    root = bench.repositories
    leaf = make_repository(root / "libs/leaf.git", {"leaf.txt": "leaf"})
    commit(root / "libs/leaf.git", {"leaf.txt": "newer"})
    make_repository(root / "libs/middle.git", {"middle.txt": "middle"})
    add_submodule(root / "libs/middle.git", "../leaf.git", "deep/leaf", leaf)
    middle = git(root / "libs/middle.git", "rev-parse", "HEAD")
    make_repository(root / "acme/app.git", {"app.py": "app"})
    add_submodule(root / "acme/app.git", "../../libs/middle.git", "vendor/middle", middle)
    add_submodule(root / "acme/app.git", bench.server.url("libs/leaf.git"), "leaf", leaf)
    checkout, files = await bench.fetch(bench.server.url("acme/app.git"))
    del files[".gitmodules"], files["vendor/middle/.gitmodules"]
    assert files == {
        "app.py": "app",
        "leaf/leaf.txt": "leaf",
        "vendor/middle/middle.txt": "middle",
        "vendor/middle/deep/leaf/leaf.txt": "leaf",
    }
    assert checkout.commit == git(root / "acme/app.git", "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("file:///etc", "LW-SOURCE-SCHEME"),
        ("/etc", "LW-SOURCE-SCHEME"),
        ("ext::sh -c touch% /hacked", "LW-SOURCE-SCHEME"),
        ("http://127.0.0.1/x.git", "LW-SOURCE-SCHEME"),
        ("--upload-pack=touch /hacked", "LW-SOURCE-SCHEME"),
        ("ssh://-oProxyCommand=touch/x", "LW-SOURCE-URI"),
        ("../../../x.git", "LW-GIT-SUBMODULE"),
        ("", "LW-GIT-SUBMODULE"),
        ("https://elsewhere.example/x.git", "LW-GIT-HOST"),
    ],
)
async def test_submodule_urls_are_judged_as_the_message_s_own(bench: Bench, url: str, code: str) -> None:
    made = make_repository(bench.repositories / "acme/app.git", {"app.py": "app"})
    add_submodule(bench.repositories / "acme/app.git", url, "lib", made)
    error = await bench.refusal(bench.server.url("acme/app.git"), hosts=("127.0.0.1",))
    assert error.code == code
    assert "Submodule 'lib'" in str(error)


async def test_a_submodule_named_to_break_out_is_only_a_name(bench: Bench) -> None:
    leaf = make_repository(bench.repositories / "leaf.git", {"leaf.txt": "leaf"})
    make_repository(bench.repositories / "app.git", {"app.py": "app"})
    add_submodule(bench.repositories / "app.git", "../leaf.git", "lib", leaf, name="../../hooks")
    _, files = await bench.fetch(bench.server.url("app.git"))
    assert files["lib/leaf.txt"] == "leaf"


async def test_a_submodule_that_contains_itself_ends(bench: Bench) -> None:
    folder = bench.repositories / "loop.git"
    made = make_repository(folder, {"a": "1"})
    for _ in range(12):
        add_submodule(folder, "../loop.git", "sub", made)
        made = git(folder, "rev-parse", "HEAD")
    error = await bench.refusal(bench.server.url("loop.git"))
    assert error.code == "LW-GIT-SUBMODULE"
    assert "deep" in str(error)


async def test_submodules_that_unfold_to_many_are_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sources.git.MAX_SUBMODULES", 3)
    leaf = make_repository(bench.repositories / "leaf.git", {"a": "1"})
    make_repository(bench.repositories / "app.git", {"a": "1"})
    for n in range(3):
        add_submodule(bench.repositories / "app.git", "../leaf.git", f"sub{n}", leaf)
    _, files = await bench.fetch(bench.server.url("app.git"))
    assert len(files) == 5
    add_submodule(bench.repositories / "app.git", "../leaf.git", "sub3", leaf)
    assert (await bench.refusal(bench.server.url("app.git"))).code == "LW-GIT-SUBMODULE"


async def test_a_missing_submodule_commit_names_the_submodule(bench: Bench) -> None:
    make_repository(bench.repositories / "leaf.git", {"a": "1"})
    make_repository(bench.repositories / "app.git", {"a": "1"})
    add_submodule(bench.repositories / "app.git", "../leaf.git", "lib", "1" * 40)
    error = await bench.refusal(bench.server.url("app.git"))
    assert error.code == "LW-GIT-REF"
    assert "'lib'" in str(error)


# --- refused


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("http://127.0.0.1/x.git", "LW-SOURCE-SCHEME"),
        ("file:///etc", "LW-SOURCE-SCHEME"),
        ("git://127.0.0.1/x.git", "LW-SOURCE-SCHEME"),
        ("ext::sh -c date", "LW-SOURCE-SCHEME"),
        ("/srv/x.git", "LW-SOURCE-SCHEME"),
        ("-u/x", "LW-SOURCE-SCHEME"),
        ("https://user@/x.git", "LW-SOURCE-URI"),
    ],
)
async def test_schemes(bench: Bench, uri: str, code: str) -> None:
    error = await bench.refusal(uri)
    assert error.code == code
    assert "https://HOST/PATH.git" in str(error)


@pytest.mark.parametrize(
    "version", ["gone", "dead123", "0" * 40, "v1.0^{tree}", "a..b", "-x", "main:train.py", "*", "x" * 300]
)
async def test_versions_that_are_not_there(bench: Bench, history: dict[str, str], version: str) -> None:
    error = await bench.refusal(bench.server.url("acme/nlp.git"), version)
    assert error.code == "LW-GIT-REF"
    assert version[:10] in str(error)


async def test_a_tag_of_a_file_is_no_version(bench: Bench, history: dict[str, str]) -> None:
    git(bench.repositories / "acme/nlp.git", "tag", "blob", "main:train.py")
    assert (await bench.refusal(bench.server.url("acme/nlp.git"), "blob")).code == "LW-GIT-REF"


async def test_an_empty_repository_has_no_default_branch(bench: Bench) -> None:
    (bench.repositories / "empty.git").mkdir()
    git(bench.repositories / "empty.git", "init", "--quiet", "--bare")
    error = await bench.refusal(bench.server.url("empty.git"))
    assert error.code == "LW-GIT-REF"
    assert "default branch" in str(error)


async def test_a_repository_that_is_not_there(bench: Bench) -> None:
    error = await bench.refusal(bench.server.url("acme/gone.git"), "main")
    assert error.code == "LW-GIT-NOT-FOUND"
    assert "/acme/gone.git" in str(error)


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "sub/../../outside", "here/../outside"])
async def test_links_out_of_the_checkout(bench: Bench, target: str) -> None:
    folder = bench.repositories / "links.git"
    make_repository(folder, {"sub/file": "x"})
    (folder / "here").symlink_to(".")
    (folder / "way-out").symlink_to(target)
    commit(folder, {})
    error = await bench.refusal(bench.server.url("links.git"))
    assert error.code == "LW-GIT-UNSAFE"
    assert "'way-out'" in str(error)


@pytest.mark.parametrize("path", [".git/config", "a/../../b", "GIT~1/config", "d/" * 70 + "f"])
async def test_trees_that_git_itself_would_never_make(bench: Bench, path: str) -> None:
    folder = bench.repositories / "evil.git"
    make_repository(folder, {"content": "[core]"})
    commit_path(folder, path)
    assert (await bench.refusal(bench.server.url("evil.git"))).code == "LW-GIT-UNSAFE"


def tree_object(folder: Path, entries: list[tuple[str, str, str]]) -> str:
    """Write a tree object as it is given: mode, name, id."""
    data = b"".join(
        f"{mode} {name}".encode() + b"\0" + bytes.fromhex(object_id) for mode, name, object_id in entries
    )
    file = folder / "tree.tmp"
    file.write_bytes(data)
    made = git(folder, "hash-object", "-t", "tree", "-w", "--literally", str(file))
    file.unlink()
    return made


def commit_path(folder: Path, path: str) -> None:
    *folders, name = path.split("/")
    entry = ("100644", name, git(folder, "rev-parse", "HEAD:content"))
    for part in reversed(folders):
        entry = ("40000", part, tree_object(folder, [entry]))
    made = git(folder, "commit-tree", "-m", "evil", tree_object(folder, [entry]))
    git(folder, "update-ref", "refs/heads/main", made)


async def test_a_tree_that_unfolds_to_a_billion_files_is_refused_before_it_is_written(bench: Bench) -> None:
    folder = bench.repositories / "bomb.git"
    make_repository(folder, {"content": "x"})
    entry = ("100644", "f", git(folder, "rev-parse", "HEAD:content"))
    for _ in range(9):
        inner = tree_object(folder, [(entry[0], f"{n}{entry[1]}", entry[2]) for n in range(10)])
        entry = ("40000", "d", inner)
    made = git(folder, "commit-tree", "-m", "bomb", entry[2])
    git(folder, "update-ref", "refs/heads/main", made)
    error = await bench.refusal(bench.server.url("bomb.git"))
    assert error.code == "LW-GIT-TOO-LARGE"
    assert "LAUNCH_SOURCE_MAX_FILES" in str(error)


@pytest.mark.parametrize("compressible", [True, False])
async def test_commits_that_are_too_large(bench: Bench, compressible: bool) -> None:
    folder = bench.repositories / "large.git"
    make_repository(folder, {"a": "1"})
    (folder / "data").write_bytes(bytes(4_000_000) if compressible else os.urandom(4_000_000))
    commit(folder, {})
    error = await bench.refusal(
        bench.server.url("large.git"), limits=SourceLimits(source_max_bytes=1_000_000)
    )
    assert error.code == "LW-GIT-TOO-LARGE"
    assert "1000000 bytes" in str(error)


async def test_a_history_that_has_to_be_fetched_is_limited_too(bench: Bench) -> None:
    bench.server.filters = False
    folder = bench.repositories / "long.git"
    wanted = make_repository(folder, {"a": "1"})
    (folder / "data").write_bytes(os.urandom(4_000_000))
    commit(folder, {})
    url, limits = bench.server.url("long.git"), SourceLimits(source_max_bytes=1_000_000)
    assert (await bench.fetch(url, wanted, limits=limits))[1] == {"a": "1"}
    error = await bench.refusal(url, wanted[:8], limits=limits)
    assert error.code == "LW-GIT-TOO-LARGE"
    assert "LAUNCH_SOURCE_MAX_BYTES" in str(error)


async def test_a_submodule_counts_with_its_parent(bench: Bench) -> None:
    leaf = make_repository(bench.repositories / "leaf.git", {"a": "1" * 600})
    make_repository(bench.repositories / "app.git", {"a": "1" * 600})
    add_submodule(bench.repositories / "app.git", "../leaf.git", "lib", leaf)
    error = await bench.refusal(bench.server.url("app.git"), limits=SourceLimits(source_max_bytes=1_000))
    assert error.code == "LW-GIT-TOO-LARGE"


# --- logins


async def test_a_login_that_is_missing_is_told(bench: Bench, history: dict[str, str]) -> None:
    bench.server.login = f"bot:{TOKEN}"
    error = await bench.refusal(bench.server.url("acme/nlp.git"))
    assert error.code == "LW-GIT-AUTH"
    assert "LAUNCH_GIT_CREDENTIALS" in str(error)


@pytest.mark.parametrize("how", ["list", "file", "url", "helper"])
async def test_logins(
    bench: Bench, history: dict[str, str], how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """By LAUNCH_GIT_CREDENTIALS, in the message's own URL, and by a helper that the operator has configured."""
    server = bench.server
    server.login = f"bot:{TOKEN}"
    line = f"https://bot:{TOKEN}@127.0.0.1:{server.port}"
    store = bench.folder / "store"
    store.write_text(f"https://other:x@elsewhere.example\n{line}\n")
    url, credentials = server.url("acme/nlp.git"), ""
    if how == "list":
        credentials = f"https://other:x@elsewhere.example,{line}"
    elif how == "file":
        credentials = str(store)
    elif how == "url":
        url = server.url("acme/nlp.git", f"bot:{TOKEN}")
    else:
        bench.configure("credential.helper", f"store --file={store}")
        url = server.url("acme/nlp.git", "bot")
    async with bench.sources(credentials=credentials).checkout(CodeSource(url, "main")) as checkout:
        assert set(server.logins) == {server.login}
        assert checkout.origin == server.url("acme/nlp.git")
        holder = checkout.path.parent
        assert not [path for path in holder.rglob("*") if path.is_file() and TOKEN in path.read_text()]
    assert store.read_text().count("\n") == 2, "git has changed the operator's store"
    assert TOKEN not in "".join(capfd.readouterr())


async def test_a_wrong_login_is_never_and_nobody_s_store_is_touched(
    bench: Bench, history: dict[str, str]
) -> None:
    bench.server.login = "bot:right"
    store = bench.folder / "store"
    store.write_text(f"https://bot:theirs@127.0.0.1:{bench.server.port}\n")
    bench.configure("credential.helper", f"store --file={store}")
    credentials = f"https://bot:{TOKEN}@127.0.0.1:{bench.server.port}"
    error = await bench.refusal(bench.server.url("acme/nlp.git"), credentials=credentials)
    assert error.code == "LW-GIT-AUTH"
    assert TOKEN not in str(error)
    assert set(bench.server.logins) == {f"bot:{TOKEN}"}
    assert "theirs" in store.read_text()


async def test_the_worker_s_login_is_for_its_host_only(bench: Bench, history: dict[str, str]) -> None:
    bench.server.login = f"bot:{TOKEN}"
    credentials = f"https://bot:{TOKEN}@127.0.0.1"
    error = await bench.refusal(bench.server.url("acme/nlp.git"), credentials=credentials)
    assert error.code == "LW-GIT-AUTH"
    assert bench.server.logins == []


async def test_a_login_is_in_nobody_s_arguments(bench: Bench, history: dict[str, str]) -> None:
    bench.server.stall = True
    url = bench.server.url("acme/nlp.git", f"bot:{TOKEN}")
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(bench.fetch(url))
        await bench.server.stalled.wait()
        lines = arguments_of_processes(bench.work_dir)
        fetching.cancel()
    assert any("ls-remote" in line for line in lines)
    assert not [line for line in lines if TOKEN in line]


def arguments_of_processes(folder: Path) -> list[str]:
    """Command lines of all processes that work below `folder`."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(process.joinpath("cwd").readlink()).startswith(str(folder)):
                lines.append(process.joinpath("cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in lines if line]  # the killed that are not buried yet have none


async def no_process_is_left(folder: Path) -> None:
    """Soon there is none: git's children were killed with it, and a busy machine takes a moment over it."""
    await until(lambda: not arguments_of_processes(folder), limit=10)


# --- the network


@pytest.mark.parametrize(("status", "kind"), [(500, Unreachable), (502, Unreachable), (429, Throttled)])
async def test_a_host_in_trouble_is_asked_again(bench: Bench, status: int, kind: type[Again]) -> None:
    bench.server.status = status
    with pytest.raises(kind, match=f"{status}"):
        await bench.fetch(bench.server.url("acme/nlp.git"))


@pytest.mark.parametrize(
    ("status", "code"), [(403, "LW-GIT-AUTH"), (404, "LW-GIT-NOT-FOUND"), (410, "LW-GIT-NOT-FOUND")]
)
async def test_a_host_that_refuses_is_not(bench: Bench, status: int, code: str) -> None:
    bench.server.status = status
    assert (await bench.refusal(bench.server.url("acme/nlp.git"))).code == code


async def test_a_connection_cut_in_mid_pack_is_tried_again(bench: Bench) -> None:
    folder = bench.repositories / "acme/nlp.git"
    make_repository(folder, {"a": "1"})
    (folder / "data").write_bytes(os.urandom(200_000))
    commit(folder, {})
    bench.server.cut = True
    with pytest.raises(Unreachable, match=r"acme/nlp\.git could not be fetched"):
        await bench.fetch(bench.server.url("acme/nlp.git"))


@pytest.mark.parametrize("url", ["https://127.0.0.1:1/x.git", "https://no-such-host.invalid/x.git"])
async def test_nobody_there_is_tried_again(bench: Bench, url: str) -> None:
    with pytest.raises(Unreachable):
        await bench.fetch(url)


async def test_a_certificate_that_is_not_trusted_says_how_to_trust_it(bench: Bench) -> None:
    (bench.folder / "home/.gitconfig").unlink()
    with pytest.raises(Unreachable, match=r"http\.sslCAInfo"):
        await bench.fetch(bench.server.url("acme/nlp.git"))


async def test_time_is_limited_and_git_is_gone_afterwards(bench: Bench) -> None:
    bench.server.stall = True
    with pytest.raises(Unreachable, match="LAUNCH_FETCH_TIMEOUT"):
        await bench.fetch(bench.server.url("acme/nlp.git"), limits=SourceLimits(fetch_timeout=0.7))
    assert bench.server.requests
    await no_process_is_left(bench.work_dir)


async def test_a_cancelled_fetch_leaves_no_process_and_no_folder(bench: Bench) -> None:
    bench.server.stall = True
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(bench.fetch(bench.server.url("acme/nlp.git")))
        await bench.server.stalled.wait()
        assert len(arguments_of_processes(bench.work_dir)) > 1
        fetching.cancel()
    await no_process_is_left(bench.work_dir)
    assert bench.left() == []


@pytest.mark.parametrize("to", ["http", "https"])
async def test_redirects(bench: Bench, history: dict[str, str], tmp_path: Path, to: str) -> None:
    """Followed within https; never to another transport, and not at all with a list of allowed hosts."""
    folder = tmp_path / "moved"
    folder.mkdir()
    async with running_git_server(folder) as moved:
        moved.redirect = f"{to}://127.0.0.1:{bench.server.port}"
        both = folder / "both.pem"
        both.write_text(moved.certificate.read_text() + bench.server.certificate.read_text())
        bench.configure("http.sslCAInfo", str(both))
        url = moved.url("acme/nlp.git")
        error = await bench.refusal(url, hosts=("127.0.0.1",))
        assert error.code == "LW-GIT-MOVED"
        if to == "https":
            assert (await bench.fetch(url))[0].commit == history["second"]
        else:
            assert (await bench.refusal(url)).code == "LW-SOURCE-SCHEME"


async def test_configuration_cannot_bring_forbidden_transports_back(bench: Bench) -> None:
    make_repository(bench.repositories / "x.git", {"a": "1"})
    bench.configure("protocol.file.allow", "always")
    bench.configure(f"url.file://{bench.repositories}/.insteadOf", "https://rewritten.example/")
    assert (await bench.refusal("https://rewritten.example/x.git")).code == "LW-SOURCE-SCHEME"


async def test_hosts_that_are_not_allowed_are_not_asked(bench: Bench) -> None:
    error = await bench.refusal(bench.server.url("acme/nlp.git"), hosts=("github.com", "*.example.org"))
    assert error.code == "LW-GIT-HOST"
    assert "github.com" in str(error)
    assert bench.server.requests == []


# --- ssh


@pytest.mark.parametrize(
    ("uri", "origin"),
    [
        ("git@git.example.org:acme/nlp.git", "ssh://git.example.org/acme/nlp.git"),
        ("ssh://git@git.example.org:2222/acme/nlp.git", "ssh://git.example.org:2222/acme/nlp.git"),
    ],
)
@pytest.mark.parametrize("how", ["variable", "configuration", "path"])
async def test_ssh(bench: Bench, history: dict[str, str], uri: str, origin: str, how: str) -> None:
    script = make_ssh(bench.folder, bench.repositories)
    environ = bench.environ()
    if how == "variable":
        environ["GIT_SSH_COMMAND"] = str(script)
    elif how == "configuration":
        bench.configure("core.sshCommand", str(script))
    else:
        environ["PATH"] = f"{script.parent}:{PATH}"
    checkout, files = await bench.fetch(uri, "feature/x", environ=environ)
    assert (checkout.commit, checkout.origin) == (history["branch"], origin)
    assert files["train.py"] == "x"
    calls = (bench.folder / "ssh.log").read_text()
    assert "git@git.example.org" in calls
    assert ("BatchMode=yes" in calls) == (how == "path")


@pytest.mark.parametrize(
    ("complaint", "code"),
    [
        ("git@git.example.org: Permission denied (publickey).", "LW-GIT-AUTH"),
        ("Host key verification failed.", "LW-TRY-AGAIN"),
        ("ERROR: Repository not found.", "LW-GIT-NOT-FOUND"),
        ("ssh: connect to host git.example.org port 22: Connection timed out", "LW-UNREACHABLE"),
        ("ssh: Could not resolve hostname git.example.org: Name or service not known", "LW-UNREACHABLE"),
        ("kex_exchange_identification: Connection closed by remote host", "LW-UNREACHABLE"),
    ],
)
async def test_what_ssh_complains_about(bench: Bench, complaint: str, code: str) -> None:
    environ = bench.environ(GIT_SSH_COMMAND=str(make_ssh(bench.folder, bench.repositories, complaint)))
    with pytest.raises(Never if code.startswith("LW-GIT") else Again) as caught:
        await bench.fetch("git@git.example.org:acme/nlp.git", environ=environ)
    assert caught.value.code == code
    assert complaint.rsplit(":", maxsplit=1)[-1].strip(" .") in str(caught.value)


async def test_relative_submodules_over_ssh(bench: Bench) -> None:
    leaf = make_repository(bench.repositories / "libs/leaf.git", {"leaf.txt": "leaf"})
    make_repository(bench.repositories / "acme/app.git", {"app.py": "app"})
    add_submodule(bench.repositories / "acme/app.git", "../../libs/leaf.git", "lib", leaf)
    environ = bench.environ(GIT_SSH_COMMAND=str(make_ssh(bench.folder, bench.repositories)))
    for uri in ("git@git.example.org:acme/app.git", "ssh://git@git.example.org/acme/app.git"):
        _, files = await bench.fetch(uri, environ=environ)
        assert files["lib/leaf.txt"] == "leaf"


async def test_many_at_once(bench: Bench, history: dict[str, str]) -> None:
    url = bench.server.url("acme/nlp.git")
    async with asyncio.TaskGroup() as group:
        fetches = [group.create_task(bench.fetch(url, name)) for name in ("main", "light", "feature/x")]
    commits = [fetch.result()[0].commit for fetch in fetches]
    assert commits == [history["second"], history["first"], history["branch"]]
