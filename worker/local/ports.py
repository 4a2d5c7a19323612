"""Listening sockets of the local stack: always on loopback, with an error that says what to change."""

from __future__ import annotations

import errno
import socket

from worker.errors import SettingsError

LOOPBACK = "127.0.0.1"


def listening_socket(port: int, service: str, option: str) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 takes any free one.

    Raises `SettingsError` naming `service`, the port and the `option` that changes it when it is taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            reason = "is in use by another program" if error.errno == errno.EADDRINUSE else "is not allowed"
            raise SettingsError(
                f"port {port} for {service} {reason}; choose another with {option}"
            ) from error
        raise
    return sock
