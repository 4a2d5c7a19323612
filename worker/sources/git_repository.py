"""A bare repository beside the checkout, filled from one remote with as little as the wanted commit needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from worker.errors import Never
from worker.sources.checkout import Budget
from worker.sources.git_command import GitCommand, GitFailed
from worker.sources.git_errors import REF_CODE, UNADVERTISED
from worker.sources.git_tree import LIST_TREE, MODULES, SUBMODULE_CODE, Submodule, TreeListing, read_modules
from worker.sources.location import GitRemote

_FULL_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.IGNORECASE)
_SHORT_ID = re.compile(r"[0-9a-f]{4,63}", re.IGNORECASE)
# git-check-ref-format, and what git's revision syntax would make more of.
_REF_NAME = re.compile(r"(?![-/.])(?!.*(?:\.\.|//|@\{|\.lock$|[/.]$))[^\x00-\x20\x7f~^:?*\[\\]{1,255}")
_FETCH = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance")
_EVERYTHING = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")


class GitRepository:
    """What is fetched from one remote. Every method raises `GitFailed` when git fails."""

    def __init__(self, git: GitCommand, remote: GitRemote, folder: Path) -> None:
        """`folder` exists and is empty; the repositories are made in it."""
        self._git = git
        self._remote = remote
        self._folder = folder
        self._repository: Path | None = None

    async def fetch(self, version: str) -> str:
        """Fetch the files of `version`; returns the full commit id. A branch wins over a tag, a tag over a commit id,
        as in W&B's agent (wandb/sdk/launch/git_reference.py). Empty: what the remote's HEAD is.

        Raises `Never` (`LW-GIT-REF`) when the remote has no such version."""
        if _FULL_ID.fullmatch(version):
            return await self._fetch_commit(version.lower())
        if version and not _REF_NAME.fullmatch(version):
            raise Never(f"{version[:200]!r} is no name of a branch, tag or commit", code=REF_CODE)
        found = await self._look_up(version)
        if found is not None:
            name, object_id = found
            await self._initialise("files.git", object_id)
            await self._fetch_shallow(name)
            return await self._resolve("FETCH_HEAD", version)
        if _SHORT_ID.fullmatch(version):
            return await self._fetch_commit(await self._complete(version.lower()))
        raise self._unknown(version)

    async def look_up(self, version: str) -> str:
        """The id that the remote has for `version`, as `fetch` would take it; nothing is fetched."""
        found = await self._look_up(version)
        if found is not None:
            return found[1]
        if _SHORT_ID.fullmatch(version) or _FULL_ID.fullmatch(version):
            return version
        raise self._unknown(version)

    async def list_tree(self, commit: str, budget: Budget) -> TreeListing:
        """What the commit holds; raises `Never` when that is more than `budget` has left."""
        listing = TreeListing(budget)
        await self._run(*LIST_TREE, commit, consume=listing.feed)
        return listing

    async def read_modules(self, commit: str) -> Mapping[str, Submodule]:
        """The submodules that the commit's `.gitmodules` describes, by path."""
        try:
            output = await self._run("config", f"--blob={commit}:{MODULES}", "--list", "-z")
        except GitFailed:
            raise Never(f"{self._remote.origin}: {MODULES} cannot be read", code=SUBMODULE_CODE) from None
        return read_modules(output)

    async def check_out(self, commit: str, tree: Path) -> None:
        """Write the commit's files into the empty folder `tree`."""
        await self._run(f"--work-tree={tree}", "checkout", "--quiet", "--force", "--detach", commit)

    async def _look_up(self, version: str) -> tuple[str, str] | None:
        """The remote's full name of `version`, and the object id it has there."""
        # The last two, as W&B's agent has them, help where HEAD names a branch that does not exist.
        names = ["HEAD", "refs/heads/main", "refs/heads/master"]
        if version not in ("", "HEAD"):
            names = [f"refs/heads/{version}", f"refs/tags/{version}"]
            names += [version] if version.startswith("refs/") else []
        output = await self._run("ls-remote", self._remote.url, *names)
        lines = (line.partition("\t") for line in output.decode(errors="replace").splitlines())
        advertised = {name: object_id for object_id, _, name in lines}
        return next(((name, advertised[name]) for name in names if name in advertised), None)

    async def _fetch_commit(self, commit: str) -> str:
        """Fetch a commit by its full id, whether a branch leads to it or not."""
        await self._initialise("files.git", commit)
        await self._fetch_shallow(commit)
        return await self._resolve(commit, commit)

    async def _fetch_shallow(self, name: str) -> None:
        try:
            await self._run(*_FETCH, "--depth=1", "origin", name)
        except GitFailed as error:
            if not UNADVERTISED.search(error.messages):
                raise
            await self._run(*_FETCH, "origin", *_EVERYTHING, *([name] if name.startswith("refs/") else []))

    async def _complete(self, short: str) -> str:
        """The full id of the commit that `short` begins. All commits are fetched for that, but, where the server knows
        filters, without their files."""
        await self._initialise("commits.git", "")
        await self._run(*_FETCH, "--filter=tree:0", "origin", *_EVERYTHING)
        return await self._resolve(short, short)

    async def _resolve(self, name: str, version: str) -> str:
        try:
            output = await self._run("rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}")
        except GitFailed as error:
            raise self._unknown(version, ambiguous="is ambiguous" in error.messages) from None
        return output.decode().split()[-1]

    def _unknown(self, version: str, *, ambiguous: bool = False) -> Never:
        reason = f"has no branch, tag or commit {version!r}; push it, or correct git.version"
        if ambiguous:
            reason = f"has more than one commit that begins with {version!r}; give the full id"
        elif not version:
            reason = "has no default branch; push one, or name a branch (git.version)"
        return Never(f"{self._remote.origin} {reason}", code=REF_CODE)

    async def _initialise(self, name: str, object_id: str) -> None:
        """Make an empty repository of the object format that `object_id` shows."""
        object_format = "sha256" if len(object_id) == 64 else "sha1"
        repository = self._folder / name
        self._repository = None
        await self._run(
            "init", "--quiet", "--bare", "--template=", f"--object-format={object_format}", str(repository)
        )
        self._repository = repository
        await self._run("config", "remote.origin.url", self._remote.url)

    async def _run(self, *arguments: str, consume: Callable[[bytes], None] | None = None) -> bytes:
        where = (f"--git-dir={self._repository}",) if self._repository else ()
        return await self._git.run(*where, *arguments, folder=self._folder, consume=consume)
