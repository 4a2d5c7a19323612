"""User data run as cloud-init would run it, but in a folder, with stand-ins for what changes the machine."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.deploy.page import stand_in

_CHANGES_THE_MACHINE = ("apt-get", "chgrp", "dnf", "groupmod", "install", "sysctl", "systemctl")


def run(text: str, root: Path, *, prints: Mapping[str, str] | None = None, absent: str = "") -> list[str]:
    """Run the script `text` with `/etc`, `/var` and `/usr/local/sbin` below `root`, which has docker's socket. Returns
    the commands that would have changed the machine, in order. `prints`: what other commands say; `absent`: a command
    that this machine does not have."""
    for folder in (
        "bin",
        "etc/ecs",
        "etc/default",
        "etc/sysctl.d",
        "etc/systemd/system",
        "usr/local/sbin",
        "var/run",
    ):
        (root / folder).mkdir(parents=True)
    calls = root / "calls"
    for name in _CHANGES_THE_MACHINE:
        if name != absent:
            stand_in(root / "bin" / name, f'echo "{name} $*" >> {calls}')
    for name, said in (prints or {}).items():
        stand_in(root / "bin" / name, f"printf '%s' '{said}'")
    for place in ("/etc/", "/var/", "/usr/local/sbin/"):
        text = text.replace(place, f"{root}{place}")
    script = root / "user-data"
    script.write_text(text)
    with socket.socket(socket.AF_UNIX) as docker:
        here = os.open(root / "var" / "run", os.O_RDONLY)  # its path may be too long for an address
        docker.bind(f"/proc/self/fd/{here}/docker.sock")
        os.close(here)
        path = f"{root / 'bin'}:/usr/bin:/bin"
        subprocess.run(["sh", script], check=True, env={"PATH": path}, cwd=root, capture_output=True)
    return calls.read_text().replace(str(root), "").splitlines()
