"""Variables that look like settings and are none: a policy that is misspelt is off, and nobody would notice. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker.settings import MACRO_PREFIX, PREFIX, Settings, variable_name

_NO_SETTINGS = frozenset({"LAUNCH_ID", "LAUNCH_REQUIRE_DOCKER"})
"""What containers of jobs are given, and what deploy/local/with-dockerd reads."""
_SERVICE_LINK = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
"""What Kubernetes tells each pod of a Service named `launch-…` ('Accessing the Service', environment variables)."""
_LINK = re.compile(r"(tcp|udp|sctp)://")
"""Value of such a Service's `…_PORT`."""


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable `LAUNCH_…` that no setting has; its value, which may be a secret, is not kept."""

    name: str
    meant: str
    """The variable that is spelt much the same; empty if none is."""

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.meant:
            return f"did you mean {self.meant}?"
        return "remove it, or correct its name (docs/settings.md)"


def unknown_variables(given: Mapping[str, str]) -> tuple[UnknownVariable, ...]:
    """Those of the variables that are `given`, by name."""
    known = {variable_name(name) for name in Settings.model_fields}
    by_words = {variable.removeprefix(PREFIX): variable for variable in known}
    found: list[UnknownVariable] = []
    for name, value in sorted(given.items()):
        if not name.startswith(PREFIX) or name in known | _NO_SETTINGS or name.startswith(MACRO_PREFIX):
            continue
        if _SERVICE_LINK.search(name) or (name.endswith("_PORT") and _LINK.match(value)):
            continue
        close = difflib.get_close_matches(name.removeprefix(PREFIX), by_words, 1)
        found.append(UnknownVariable(name, by_words[close[0]] if close else ""))
    return tuple(found)
