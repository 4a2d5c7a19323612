"""Small base images without a registry: root file systems put together from Debian packages.

* busybox, 2 MB: a shell and its tools, for tests.
* Python, 35 MB: the standard library with TLS, a shell, CA certificates; for the demo.

The packages come from the machine's own apt sources and are kept in a folder; nothing runs as root but the docker
daemon. The Debian release, and with it Python's version, is the machine's.
"""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import aiodocker
from aiodocker.exceptions import DockerError

from worker.errors import WorkerError

BUSYBOX_IMAGE = "launch-local/busybox:1"
PYTHON_IMAGE = "launch-local/python:1"

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MERGED = ("bin", "sbin", "lib", "lib32", "libx32", "lib64")
_FOLDERS = ("etc/ssl/certs", "proc", "sys", "dev", "root", "opt/ml", *(f"usr/{name}" for name in _MERGED))
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
_APPLETS = (
    "awk base64 basename cat chmod chown cmp cp cut date dd df dirname du echo env expr false find free grep gunzip"
    " gzip head hostname id kill ln ls md5sum mkdir mkfifo mktemp mount mv nc nproc od pgrep ping printf ps pwd"
    " readlink realpath rm rmdir sed seq sh sha256sum sleep sort stat stty sync tail tar tee test timeout touch tr"
    " true uname uniq usleep vi wc wget which whoami xargs yes"
)
"""Of busybox's applets those that a job's script may want."""
_NOT_NEEDED = re.compile(
    r"usr/share/(doc|man|locale|lintian|python3|binfmts|applications|info)(/|$)"
    r"|usr/lib/[^/]+/gconv/"
    r"|usr/lib/python3[.\d]*/(ensurepip|idlelib|lib2to3|pydoc_data|test|distutils/command)(/|$)"
)
_WHOLE_SYSTEM = (
    "debconf", "dpkg", "gcc-", "install-info", "libgdbm", "libperl", "mailcap", "mime-support", "perl", "tar",
)  # fmt: skip
"""Packages (prefixes) that dependencies name and a container that only runs Python can do without."""
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")


class ImageNotBuilt(WorkerError):
    """The image could not be put together; the message says what to do."""


async def ensure_busybox_image(docker: aiodocker.Docker, state: Path, tag: str = BUSYBOX_IMAGE) -> str:
    """Make the busybox image unless the daemon has it; returns `tag`. Packages are kept in `state`.

    Raises `ImageNotBuilt`."""
    if not await _has_image(docker, tag):
        debs = await _download(("busybox-static",), state / "debs" / "busybox")
        await _make_image(docker, tag, debs, command=["/bin/sh"], links={})
    return tag


async def ensure_python_image(docker: aiodocker.Docker, state: Path, tag: str = PYTHON_IMAGE) -> str:
    """Make the Python image unless the daemon has it; returns `tag`. Packages are kept in `state`.

    Raises `ImageNotBuilt`."""
    if await _has_image(docker, tag):
        return tag
    folder = state / "debs" / "python"
    version = await _python_version()
    # python3.X-minimal and -stdlib with all they need; never the packages that would set up a whole system.
    names = await _with_dependencies((f"python{version}-minimal", f"libpython{version}-stdlib"))
    debs = await _download((*names, "busybox-static", "ca-certificates"), folder)
    links = {"usr/bin/python3": f"python{version}", "usr/bin/python": "python3"}
    await _make_image(docker, tag, debs, command=["python3"], links=links)
    return tag


async def _has_image(docker: aiodocker.Docker, tag: str) -> bool:
    try:
        await docker.images.inspect(tag)
    except DockerError as error:
        if error.status == 404:
            return False
        raise
    return True


async def _python_version() -> str:
    """`3.11` on Debian 12: the version that python3-minimal stands for."""
    text = await _run("apt-cache", "depends", "python3-minimal")
    match = re.search(r"python(3\.\d+)-minimal", text)
    if match is None:
        raise ImageNotBuilt("apt knows no package python3-minimal; run `apt-get update` as root")
    return match[1]


async def _with_dependencies(names: Sequence[str]) -> list[str]:
    hidden = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    text = await _run("apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in hidden), *names)
    found = {line for line in text.splitlines() if _PACKAGE_NAME.fullmatch(line)}
    return sorted(name for name in found if not name.startswith(_WHOLE_SYSTEM))


async def _download(names: Iterable[str], folder: Path) -> list[Path]:
    """The .deb files of the packages, from `folder` if an earlier download was complete.

    Two processes may do it at once: the folder is there as a whole, or not at all."""
    complete = folder / "complete"
    if not await asyncio.to_thread(complete.exists):
        await asyncio.to_thread(folder.parent.mkdir, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            made = Path(name) / folder.name
            await asyncio.to_thread(made.mkdir)
            await _run("apt-get", "download", "-q", *names, cwd=made)
            await asyncio.to_thread((made / "complete").touch)
            await asyncio.to_thread(_put, made, folder)
    return await asyncio.to_thread(lambda: sorted(folder.glob("*.deb")))


def _put(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except (
        OSError
    ):  # it is there: another process was faster, or one was interrupted before this was done whole
        if not (folder / "complete").exists():
            shutil.rmtree(folder)
            made.rename(folder)


async def _run(*command: str, cwd: Path | None = None) -> str:
    output, failed = await _run_bytes(*command, cwd=cwd)
    if failed:
        raise ImageNotBuilt(
            f"`{' '.join(command[:3])} …` failed: {failed[-500:]}; run `apt-get update` as root and try again"
        )
    return output.decode(errors="replace")


async def _run_bytes(*command: str, cwd: Path | None = None) -> tuple[bytes, str]:
    """(stdout, error text): the error is empty when the command succeeded."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError as error:
        raise ImageNotBuilt(
            f"{command[0]} is not here: base images are made from Debian packages; on other systems build or pull"
            " an image yourself and name it with LAUNCH_BASE_IMAGE"
        ) from error
    output, errors = await process.communicate()
    failed = errors.decode(errors="replace").strip() or f"exit code {process.returncode}"
    return output, failed if process.returncode else ""


async def _make_image(
    docker: aiodocker.Docker, tag: str, debs: Sequence[Path], *, command: list[str], links: dict[str, str]
) -> None:
    root = await _root_file_system(debs, links)
    lines = (
        "FROM scratch",
        "ADD root.tar /",
        f"ENV PATH=/usr/local/bin:/usr/bin:/bin SSL_CERT_FILE=/{_CERTIFICATES} PYTHONUNBUFFERED=1",
        f"CMD {command}".replace("'", '"'),
    )
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        _add_file(archive, "Dockerfile", "\n".join(lines).encode())
        _add_file(archive, "root.tar", root)
    context.seek(0)
    try:
        await docker.images.build(fileobj=context, encoding="identity", tag=tag, rm=True, forcerm=True)
    except DockerError as error:
        raise ImageNotBuilt(f"the docker daemon could not build {tag}: {error.message}") from error


async def _root_file_system(debs: Sequence[Path], links: dict[str, str]) -> bytes:
    """A tar of all packages, without what a container doesn't need. No maintainer script runs."""
    packages = []
    for deb in debs:
        content, failed = await _run_bytes("dpkg-deb", "--fsys-tarfile", str(deb))
        if failed:
            raise ImageNotBuilt(f"{deb.name} cannot be read ({failed}); delete it and try again")
        packages.append(content)
    return await asyncio.to_thread(_merge, packages, links)


def _merge(packages: Sequence[bytes], links: dict[str, str]) -> bytes:
    buffer, certificates = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as root:
        for name in _FOLDERS:
            _add_folder(root, name, 0o755)
        _add_folder(root, "tmp", 0o1777)
        # /bin and its like are links into /usr, as in every current Debian; older packages still say /bin.
        _add_links(root, {name: f"usr/{name}" for name in _MERGED})
        for content in packages:
            _copy_members(content, root, certificates)
        applets = {f"usr/bin/{applet}": "busybox" for applet in _APPLETS.split()}
        _add_links(root, {**applets, **links})
        _add_file(root, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        _add_file(root, "etc/group", b"root:x:0:\n")
        if certificates.getvalue():
            _add_file(root, _CERTIFICATES, certificates.getvalue())
    return buffer.getvalue()


def _copy_members(content: bytes, root: tarfile.TarFile, certificates: io.BytesIO) -> None:
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        for member in package:
            name = member.name.removeprefix("./").removeprefix(".")
            first = name.partition("/")[0]
            if not name or name in _MERGED or _NOT_NEEDED.match(name):
                continue
            member.name = f"usr/{name}" if first in _MERGED else name
            file = package.extractfile(member) if member.isfile() else None
            if file and name.endswith(".crt"):
                certificates.write(file.read())  # the package's maintainer script would join them
            else:
                root.addfile(member, file)


def _add_folder(archive: tarfile.TarFile, name: str, mode: int) -> None:
    folder = tarfile.TarInfo(name)
    folder.type, folder.mode = tarfile.DIRTYPE, mode
    archive.addfile(folder)


def _add_links(archive: tarfile.TarFile, links: dict[str, str]) -> None:
    for path, target in links.items():
        link = tarfile.TarInfo(path)
        link.type, link.linkname = tarfile.SYMTYPE, target
        archive.addfile(link)


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    file = tarfile.TarInfo(name)
    file.size, file.mode = len(content), 0o644
    archive.addfile(file, io.BytesIO(content))
