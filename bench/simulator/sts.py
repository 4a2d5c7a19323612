"""STS, which speaks XML: who is calling."""

from __future__ import annotations

from bench.simulator.jobs import ACCOUNT

CALLER = f"""<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<GetCallerIdentityResult><Arn>arn:aws:iam::{ACCOUNT}:user/bench</Arn><UserId>AIDABENCH</UserId>
<Account>{ACCOUNT}</Account></GetCallerIdentityResult>
<ResponseMetadata><RequestId>bench</RequestId></ResponseMetadata></GetCallerIdentityResponse>"""
"""The answer to GetCallerIdentity."""
