"""IAM of the local AWS: it denies nothing, and does not simulate policies, which moto does not know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from moto.iam.responses import IamResponse

from worker.local.aws import replaced

_DENIED = (
    "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User is not authorized to perform:"
    " iam:SimulatePrincipalPolicy</Message></Error></ErrorResponse>"
)


def _refuse(_: IamResponse) -> tuple[int, dict[str, str], str]:
    return 403, {"Content-Type": "text/xml", "status": "403"}, _DENIED


@contextlib.contextmanager
def aws_like_iam() -> Iterator[None]:
    """SimulatePrincipalPolicy is answered as to somebody who may not call it, for as long as the context lasts."""
    with replaced(IamResponse, simulate_principal_policy=_refuse):
        yield
