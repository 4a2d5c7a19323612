"""`LAUNCH_GIT_CREDENTIALS`: how it is read, and what git is told of it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from worker.errors import SettingsError
from worker.sources.git_credentials import GitCredentials, Login, secrets_of, write_store
from worker.sources.location import parse_remote

ONE = "https://ada:t0k%2Cen@Git.Example.org:8443"
TWO = "https://bot:other@h.example/acme"


def read(text: str) -> tuple[Login, ...]:
    return GitCredentials(SecretStr(text)).read()


@pytest.mark.parametrize(
    "text", [f"{ONE},{TWO}", f"{ONE}\n{TWO}\n", f" {ONE} , {TWO} ", f"\r\n{ONE}\r\n{TWO}"]
)
def test_lists(text: str) -> None:
    assert [(login.address, login.line, login.password) for login in read(text)] == [
        ("git.example.org:8443", ONE, "t0k%2Cen"),
        ("h.example", TWO, "other"),
    ]


def test_none_at_all() -> None:
    assert GitCredentials().read() == GitCredentials(None).read() == read(" ") == ()


def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"{ONE}\n")
    credentials = GitCredentials(SecretStr(str(file)))
    assert [login.line for login in credentials.read()] == [ONE]
    file.write_text(f"{TWO}\n")
    assert [login.line for login in credentials.read()] == [TWO]


@pytest.mark.parametrize(
    "text",
    [
        "https://s3cret@h.example",
        "http://ada:s3cret@h.example",
        "ssh://ada:s3cret@h.example",
        "https://ada:s3cret@",
        f"{ONE},ada:s3cret@h.example",
        "https://ada:s3cret:x@h.example",
        "/no/such/s3cret",
    ],
)
def test_what_is_wrong_is_told_without_quoting_it(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^LAUNCH_GIT_CREDENTIALS: ") as caught:
        read(text)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_logins_are_not_shown() -> None:
    credentials = GitCredentials(SecretStr(TWO))
    assert "other" not in f"{credentials!r} {vars(credentials)} {credentials.read()!r}"


def test_the_store_is_for_its_owner_only_and_replaces_the_helpers_of_its_hosts(tmp_path: Path) -> None:
    store = tmp_path / "with space" / "store"
    store.parent.mkdir()
    configuration = write_store(parse_remote("https://h.example/x"), read(f"{ONE},{TWO}"), store)
    assert store.read_text() == f"{ONE}\n{TWO}\n"
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert configuration == (
        ("credential.https://git.example.org:8443.helper", ""),
        ("credential.https://git.example.org:8443.helper", f"store --file='{store}'"),
        ("credential.https://h.example.helper", ""),
        ("credential.https://h.example.helper", f"store --file='{store}'"),
    )


def test_the_message_s_own_login_comes_first_for_its_host_only(tmp_path: Path) -> None:
    store = tmp_path / "store"
    configuration = write_store(parse_remote("https://me:mine@h.example/x"), read(f"{ONE},{TWO}"), store)
    assert store.read_text() == f"https://me:mine@h.example\n{ONE}\n{TWO}\n"
    assert [key for key, value in configuration if not value] == [
        "credential.https://h.example.helper",
        "credential.https://git.example.org:8443.helper",
    ]


def test_a_user_name_is_what_helpers_are_asked_for_unless_the_worker_has_a_login(tmp_path: Path) -> None:
    remote = parse_remote("https://a%40b@h.example/x")
    assert write_store(remote, (), tmp_path / "store") == (("credential.https://h.example.username", "a@b"),)
    assert not (tmp_path / "store").exists()
    keys = [key for key, _ in write_store(remote, read(TWO), tmp_path / "store")]
    assert keys == ["credential.https://h.example.helper"] * 2


@pytest.mark.parametrize("remote", ["git@h.example:x", "ssh://git@h.example/x"])
def test_ssh_has_no_store_of_its_own(tmp_path: Path, remote: str) -> None:
    assert write_store(parse_remote(remote), (), tmp_path / "store") == ()


def test_secrets_in_both_spellings() -> None:
    secrets = secrets_of(parse_remote("https://me:m%21ne@h.example/x"), read(ONE))
    assert secrets == {"me", "m%21ne", "m!ne", "t0k%2Cen", "t0k,en"}
    assert secrets_of(parse_remote("git@h.example:x"), ()) == frozenset()
