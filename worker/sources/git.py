"""A git commit, its submodules with it, written to a folder without its history.

Submodules are fetched here, not by `git submodule`: their URLs are judged as the message's own is, and nothing of what
a repository says about itself is run.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from worker.errors import Never
from worker.sources.checkout import Budget, SourceLimits
from worker.sources.git_command import Configuration, GitCommand, GitFailed
from worker.sources.git_credentials import GitCredentials, Login, secrets_of, write_store
from worker.sources.git_errors import TOO_LARGE_CODE, UNSAFE_CODE, explain_failure
from worker.sources.git_repository import GitRepository
from worker.sources.git_tree import MODULES, SUBMODULE_CODE, Submodule
from worker.sources.location import GitRemote, parse_remote
from worker.sources.stoppable import StopCheck, run_stoppable, run_to_end
from worker.sources.tree import links_out

HOST_CODE = "LW-GIT-HOST"
PATCH_CODE = "LW-JOB-PATCH"

MAX_SUBMODULE_DEPTH = 8
MAX_SUBMODULES = 500
"""In all. Repositories that contain each other unfold to any number."""
_QUIET_SSH: Configuration = (("core.sshCommand", "ssh -oBatchMode=yes -oConnectTimeout=30"),)
# With an allow-list a redirect would lead to a host that nobody has looked at.
_NO_REDIRECTS: Configuration = (("http.followRedirects", "false"),)


class GitClient:
    """Fetches commits with the git of this machine (2.31 or newer), its configuration and its credential helpers."""

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        credentials: GitCredentials | None = None,
        allowed_hosts: tuple[str, ...] = (),
    ) -> None:
        """`environ`: what git may see of the worker's environment (`git_command.INHERITED`). `allowed_hosts`: globs;
        none at all allows any."""
        self._environ = environ
        self._credentials = credentials or GitCredentials()
        self._allowed_hosts = allowed_hosts

    async def fetch(
        self, remote: GitRemote, version: str, *, scratch: Path, tree: Path, limits: SourceLimits
    ) -> str:
        """Write the files of `version` (branch, tag, full or short commit id; empty: the remote's HEAD) into the empty
        folder `tree`; returns the full commit id. `scratch` is an empty folder for what git needs beside it.

        Raises `Never` (`LW-GIT-…`), `Unreachable`, `Throttled` or `Again`; in no text is a login. `SettingsError` when
        the worker's logins cannot be read."""
        fetch = await self._prepared(remote, scratch, limits)
        commit = await fetch.write(remote, version, tree)
        await run_stoppable(lambda check_stop: _look_over(tree, limits, check_stop))
        return commit

    async def look_up(self, remote: GitRemote, version: str, *, scratch: Path, limits: SourceLimits) -> str:
        """Ask the remote (`git ls-remote`) for the id of a branch or tag, and fetch nothing. A commit id is given
        back as it is, once the remote has answered; raises as `fetch`."""
        return await (await self._prepared(remote, scratch, limits)).look_up(remote, version)

    async def _prepared(self, remote: GitRemote, scratch: Path, limits: SourceLimits) -> _Fetch:
        logins = await run_to_end(self._credentials.read)
        configuration = await run_to_end(lambda: write_store(remote, logins, scratch / "credentials"))
        if self._allowed_hosts:
            configuration += _NO_REDIRECTS
        git = GitCommand(self._environ, max_file_bytes=limits.source_max_bytes, configuration=configuration)
        if not await _has_ssh_command(git, scratch):
            git = git.configured(_QUIET_SSH)
        return _Fetch(
            git=git,
            scratch=scratch,
            limits=limits,
            budget=Budget(limits, code=TOO_LARGE_CODE),
            logins=logins,
            allowed_hosts=self._allowed_hosts,
            repositories=itertools.count(),
            submodules=itertools.count(),
        )

    async def apply(self, patch: Path, tree: Path, *, limits: SourceLimits) -> None:
        """Apply the patch file to the files in `tree`, which is no repository; nothing outside is written.

        Raises `Never` (`LW-JOB-PATCH`) with git's words when it does not apply, `LW-GIT-UNSAFE` for a link that leads
        out."""
        git = GitCommand(self._environ, max_file_bytes=limits.source_max_bytes)
        try:
            await git.run("apply", "--whitespace=nowarn", "-p1", str(patch), folder=tree)
        except GitFailed as failure:
            words = " ".join(failure.messages.split())[-500:]
            raise Never(
                f"{patch.name} of the job does not apply to the commit: {words}; create the job again from a commit"
                " that has been pushed",
                code=PATCH_CODE,
            ) from None
        await run_stoppable(lambda check_stop: _look_over(tree, limits, check_stop))


async def _has_ssh_command(git: GitCommand, folder: Path) -> bool:
    """The operator has said how ssh is run; then it is theirs to make it ask nothing."""
    try:
        await git.run("config", "--get", "core.sshCommand", folder=folder)
    except GitFailed:
        return git.has_ssh_command
    return True


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One fetch, over all repositories that take part in it."""

    git: GitCommand
    scratch: Path
    limits: SourceLimits
    budget: Budget
    logins: tuple[Login, ...]
    allowed_hosts: tuple[str, ...]
    repositories: Iterator[int]
    submodules: Iterator[int]

    async def write(self, remote: GitRemote, version: str, tree: Path, depth: int = 0) -> str:
        """Write one repository's commit, and those of its submodules, into `tree`."""
        repository = self._repository(remote)
        modules: Mapping[str, Submodule] = {}
        try:
            commit = await repository.fetch(version)
            listing = await repository.list_tree(commit, self.budget)
            if listing.submodules and listing.has_modules:
                modules = await repository.read_modules(commit)
            await repository.check_out(commit, tree)
        except GitFailed as failure:
            raise self._explained(failure, remote, version) from None
        for path, pinned in listing.submodules.items():
            try:
                await self._write_submodule(remote, modules.get(path), pinned, tree / path, depth + 1)
            except Never as error:
                raise Never(f"Submodule {path[:200]!r}: {error}", code=error.code) from error
        return commit

    async def look_up(self, remote: GitRemote, version: str) -> str:
        """What `version` is on the remote."""
        try:
            return await self._repository(remote).look_up(version)
        except GitFailed as failure:
            raise self._explained(failure, remote, version) from None

    def _repository(self, remote: GitRemote) -> GitRepository:
        if self.allowed_hosts and not any(fnmatchcase(remote.host, glob) for glob in self.allowed_hosts):
            allowed = ", ".join(self.allowed_hosts)
            raise Never(f"{remote.origin}: the host is not allowed; use one of {allowed}", code=HOST_CODE)
        folder = self.scratch / f"repository-{next(self.repositories)}"
        folder.mkdir()
        return GitRepository(self.git, remote, folder)

    def _explained(self, failure: GitFailed, remote: GitRemote, version: str) -> Exception:
        secrets = secrets_of(remote, self.logins)
        return explain_failure(failure.messages, remote, version=version, limits=self.limits, secrets=secrets)

    async def _write_submodule(
        self, parent: GitRemote, module: Submodule | None, commit: str, folder: Path, depth: int
    ) -> None:
        if module is None or not module.url:
            reason = f"{parent.origin} has no URL for it in {MODULES}; commit that, or remove the submodule"
            raise Never(reason, code=SUBMODULE_CODE)
        if module.update == "none":
            return
        if depth > MAX_SUBMODULE_DEPTH or next(self.submodules) >= MAX_SUBMODULES:
            reason = (
                f"submodules are nested more than {MAX_SUBMODULE_DEPTH} deep, or more than {MAX_SUBMODULES}"
            )
            raise Never(reason, code=SUBMODULE_CODE)
        if _lies_behind_link(folder):
            raise Never("it lies behind a link; remove the link", code=UNSAFE_CODE)
        await self.write(_submodule_remote(parent, module), commit, folder, depth)


def _submodule_remote(parent: GitRemote, module: Submodule) -> GitRemote:
    if not module.url.startswith(("./", "../")) and module.url not in (".", ".."):
        return parse_remote(module.url)
    remote = parent.relative(module.url)
    if remote is None:
        raise Never(f"the URL {module.url[:200]!r} leads above {parent.origin}", code=SUBMODULE_CODE)
    return remote


def _lies_behind_link(folder: Path) -> bool:
    """git makes a folder for each submodule, in folders it has made; anything else is not written into."""
    return folder.resolve() != folder


def _look_over(tree: Path, limits: SourceLimits, check_stop: StopCheck) -> None:
    """Refuse links that lead out, and count once more what has been written: a filter that the operator has configured
    (git-lfs) may have made files larger. Modes do not depend on the worker's umask."""
    budget = Budget(limits, code=TOO_LARGE_CODE)
    for folder, folders, files in os.walk(tree):
        check_stop()
        paths = [Path(folder, name) for name in (*folders, *files)]
        for path in links_out(tree, (path for path in paths if path.is_symlink())):
            shown, target = str(path.relative_to(tree))[:200], str(path.readlink())[:200]
            reason = f"The commit holds {shown!r}, a link out of the checkout, to {target!r}; remove it"
            raise Never(reason, code=UNSAFE_CODE)
        for path in paths:
            status = path.lstat()
            if not stat.S_ISLNK(status.st_mode):
                path.chmod(0o755 if status.st_mode & stat.S_IXUSR else 0o644)
            if stat.S_ISREG(status.st_mode):
                budget.take_bytes(status.st_size)
