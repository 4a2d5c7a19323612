"""A git host on loopback: the real `git http-backend` behind TLS, with logins and failures; a stand-in for ssh."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shlex
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

PATH = "/usr/local/bin:/usr/bin:/bin"


def git(folder: Path, *arguments: str) -> str:
    """Run git as the author of test repositories, with no configuration but its own."""
    environ = {
        "PATH": PATH,
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
        "GIT_ALLOW_PROTOCOL": "file",
    }
    done = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_repository(folder: Path, files: Mapping[str, str], *options: str) -> str:
    """A repository with one commit on `main`; returns the commit's id."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", *options)
    return commit(folder, files)


def commit(folder: Path, files: Mapping[str, str], message: str = "work") -> str:
    """One more commit; returns its id."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and localhost, and its key."""
    certificate, key = folder / "ca.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@dataclass
class GitServer:
    """Serves the repositories below `root`, as `https://127.0.0.1:PORT/<path>`."""

    root: Path
    certificate: Path
    port: int = 0
    login: str = ""
    """`user:password` that it asks for; empty: none."""
    status: int = 0
    """Answer everything with this."""
    redirect: str = ""
    """Send everything to this address instead."""
    cut: bool = False
    """Break the connection in the middle of a pack."""
    stall: bool = False
    """Never answer."""
    filters: bool = True
    """Serve fetches with `--filter`."""
    requests: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str, login: str = "") -> str:
        """The URL of a repository, `login` in it."""
        return f"https://{login}{'@' if login else ''}127.0.0.1:{self.port}/{path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request of git."""
        self.requests.append(f"{request.method} {request.path_qs}")
        if self.stall:
            self.stalled.set()
            await asyncio.Event().wait()
        if self.redirect:
            return web.Response(status=301, headers={"Location": f"{self.redirect}{request.path_qs}"})
        if self.status:
            return web.Response(status=self.status)
        given = request.headers.get("Authorization", "")
        if given:
            self.logins.append(base64.b64decode(given.removeprefix("Basic ")).decode())
        if self.login and (not given or self.logins[-1] != self.login):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        head, body = await self._backend(request, await request.read())
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        status = int(headers.pop("Status", "200").split()[0])
        if self.cut and len(body) > 5000:
            return await self._cut_off(request, headers, body)
        return web.Response(status=status, headers=headers, body=body)

    async def _cut_off(
        self, request: web.Request, headers: Mapping[str, str], body: bytes
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _backend(self, request: web.Request, body: bytes) -> tuple[bytes, bytes]:
        config = {"http.receivepack": "false", "uploadpack.allowFilter": str(self.filters).lower()}
        environ = {
            "PATH": PATH,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "GIT_CONFIG_COUNT": str(len(config)),
        }
        for number, (key, value) in enumerate(config.items()):
            environ |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=environ, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate(body)
        head, _, content = output.partition(b"\r\n\r\n")
        return head, content


@contextlib.asynccontextmanager
async def running_git_server(folder: Path) -> AsyncIterator[GitServer]:
    """Serve `folder / "repositories"` on a free port of 127.0.0.1."""
    certificate, key = make_certificate(folder)
    server = GitServer(folder / "repositories", certificate)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", server.handle)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        await runner.cleanup()


def make_ssh(folder: Path, root: Path, complaint: str = "") -> Path:
    """A stand-in for `ssh`: writes down how it was called and serves `root`, or complains as ssh does."""
    script, log = folder / "ssh", folder / "ssh.log"
    serve = f'eval "set -- $last"; exec "$1" {shlex.quote(str(root))}/"$2"'
    if complaint:
        serve = f"echo {shlex.quote(complaint)} >&2; exit 255"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> {shlex.quote(str(log))}\n'
        '[ "$1" = -G ] && exit 0\n'
        'for last in "$@"; do :; done\n'
        f"{serve}\n"
    )
    script.chmod(0o755)
    return script
