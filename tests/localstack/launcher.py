"""LocalStack 4.13 in host mode, on the interface it is given: `python launcher.py HOST`.

Runs in `.venv-localstack`. LocalStack's own server takes the host of GATEWAY_LISTEN for a hint and listens on every
interface; a test must not do that.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main(host: str) -> None:
    """Serve until SIGTERM."""
    # By name: these packages are not where the type checker looks.
    endpoints = importlib.import_module("twisted.internet.endpoints")
    listen = endpoints.TCP4ServerEndpoint.__init__

    def on_host(endpoint: Any, reactor: Any, port: int, backlog: int = 50, interface: str = "") -> None:
        listen(endpoint, reactor, port, backlog, interface or host)

    endpoints.TCP4ServerEndpoint.__init__ = on_host
    importlib.import_module("localstack.runtime.main").main()


if __name__ == "__main__":
    main(sys.argv[1])
