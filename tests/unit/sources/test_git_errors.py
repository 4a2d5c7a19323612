"""git's messages, as git 2.39, curl, OpenSSH and the well-known hosts write them: again, or never, and why."""

from __future__ import annotations

import pytest

from worker.errors import Again, Never, Throttled, Unreachable, WorkerError
from worker.sources.checkout import SourceLimits
from worker.sources.git_errors import explain_failure
from worker.sources.location import parse_remote

URL = "https://h.example/acme/x.git"
UNABLE = f"fatal: unable to access '{URL}/': "
REMOTE_END = "fatal: the remote end hung up unexpectedly\nfatal: early EOF\nfatal: index-pack failed"
SSH_END = """fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists."""


def explain(messages: str, version: str = "main", secrets: tuple[str, ...] = ()) -> WorkerError:
    return explain_failure(
        messages, parse_remote(URL), version=version, limits=SourceLimits(), secrets=secrets
    )


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ("fatal: could not read Username for 'https://h.example': terminal prompts disabled", "LW-GIT-AUTH"),
        (
            "remote: Invalid username or password.\nfatal: Authentication failed for 'https://h.example/'",
            "LW-GIT-AUTH",
        ),
        (
            "remote: HTTP Basic: Access denied\nfatal: Authentication failed for 'https://h.example/'",
            "LW-GIT-AUTH",
        ),
        (f"{UNABLE}The requested URL returned error: 403", "LW-GIT-AUTH"),
        (f"git@h.example: Permission denied (publickey).\n{SSH_END}", "LW-GIT-AUTH"),
        (f"fatal: repository '{URL}/' not found", "LW-GIT-NOT-FOUND"),
        (f"ERROR: Repository not found.\n{SSH_END}", "LW-GIT-NOT-FOUND"),
        (
            "remote: The project you were looking for could not be found or you don't have permission to view it.",
            "LW-GIT-NOT-FOUND",
        ),
        (
            f"fatal: '/srv/x.git' does not appear to be a git repository\n{SSH_END}",
            "LW-GIT-NOT-FOUND",
        ),
        ("fatal: couldn't find remote ref refs/heads/main", "LW-GIT-REF"),
        ("fatal: remote error: upload-pack: not our ref 0123", "LW-GIT-REF"),
        ("error: Server does not allow request for unadvertised object 0123", "LW-GIT-REF"),
        ("fatal: transport 'file' not allowed", "LW-SOURCE-SCHEME"),
        (f'{UNABLE}Protocol "http" not supported or disabled in libcurl', "LW-SOURCE-SCHEME"),
        (f'{UNABLE}Protocol "http" disabled', "LW-SOURCE-SCHEME"),
        (
            "fatal: write error: File too large\nfatal: fetch-pack: invalid index-pack output",
            "LW-GIT-TOO-LARGE",
        ),
        (f"{UNABLE}The requested URL returned error: 301", "LW-GIT-MOVED"),
        ("error: invalid path '.git/config'", "LW-GIT-UNSAFE"),
    ],
)
def test_never(messages: str, code: str) -> None:
    error = explain(messages)
    assert isinstance(error, Never)
    assert error.code == code
    assert URL in str(error)


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        (f"{UNABLE}Could not resolve host: h.example", Unreachable),
        (f"{UNABLE}Failed to connect to h.example port 443 after 0 ms: Connection refused", Unreachable),
        (f"{UNABLE}The requested URL returned error: 500", Unreachable),
        (f"{UNABLE}The requested URL returned error: 503", Unreachable),
        (f"{UNABLE}The requested URL returned error: 429", Throttled),
        (f"{UNABLE}OpenSSL SSL_read: Connection reset by peer, errno 104", Unreachable),
        (
            f"{UNABLE}Operation too slow. Less than 1000 bytes/sec transferred the last 60 seconds",
            Unreachable,
        ),
        (f"{UNABLE}Received HTTP code 502 from proxy after CONNECT", Unreachable),
        (f"{UNABLE}server certificate verification failed. CAfile: none CRLfile: none", Unreachable),
        (
            f"error: RPC failed; curl 18 transfer closed with outstanding read data remaining\n{REMOTE_END}",
            Unreachable,
        ),
        (f"ssh: connect to host h.example port 22: Connection timed out\n{SSH_END}", Unreachable),
        (f"kex_exchange_identification: read: Connection reset by peer\n{SSH_END}", Unreachable),
        ("error: file write error: No space left on device\nfatal: unable to write object", Again),
        (f"No ED25519 host key is known for h.example.\nHost key verification failed.\n{SSH_END}", Again),
        ("fatal: something that git says from 2030 on", Unreachable),
        ("", Unreachable),
    ],
)
def test_again(messages: str, kind: type[Again]) -> None:
    error = explain(messages)
    assert type(error) is kind
    if "No space" not in messages:
        assert URL in str(error)


def test_an_unknown_host_key_says_what_to_do() -> None:
    assert "known_hosts" in str(explain(f"Host key verification failed.\n{SSH_END}"))


def test_what_ssh_says_is_shown_and_what_git_adds_is_not() -> None:
    error = str(explain(f"hint: think\ngit@h.example: Permission denied (publickey).\n{SSH_END}"))
    assert "Permission denied (publickey)" in error
    assert "correct access rights" not in error
    assert "hint" not in error


def test_the_version_is_named() -> None:
    assert "'v9'" in str(explain("fatal: couldn't find remote ref v9", "v9"))
    assert "'{max_bytes}'" in str(explain("fatal: couldn't find remote ref v9", "{max_bytes}"))


def test_no_secret_is_in_the_text() -> None:
    said = "fatal: unable to access 'https://ada:s3cret@h.example/x': tok%21en tok!en s3cret"
    error = str(explain(said, secrets=("s3cret", "tok%21en", "tok!en")))
    assert not [secret for secret in ("s3cret", "tok%21en", "tok!en", "ada") if secret in error]
    assert "***" in error


def test_texts_are_bounded_and_without_control_characters() -> None:
    error = str(explain("\x1b[31m" + "remote: x\x00y\r\n" * 5 + "z" * 100_000 + "\nfatal: the end"))
    assert len(error) < 700
    assert error.isprintable()
    assert "the end" in error
