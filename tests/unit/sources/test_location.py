"""URIs of sources: what is read, what is refused, and what of it is shown."""

from __future__ import annotations

import pytest

from worker.errors import Never
from worker.sources.location import GitRemote, S3Object, parse_location, parse_remote, without_login


@pytest.mark.parametrize(
    ("uri", "url", "origin"),
    [
        (
            "https://github.com/acme/nlp.git",
            "https://github.com/acme/nlp.git",
            "https://github.com/acme/nlp.git",
        ),
        ("HTTPS://GitHub.com:443/Acme/nlp", "https://github.com/Acme/nlp", "https://github.com/Acme/nlp"),
        (
            "https://git.example.org:8443/a",
            "https://git.example.org:8443/a",
            "https://git.example.org:8443/a",
        ),
        (
            "https://ada@h.example/a%20b/_git/c",
            "https://h.example/a%20b/_git/c",
            "https://h.example/a%20b/_git/c",
        ),
        ("https://ada:pa%40ss@h.example/a", "https://h.example/a", "https://h.example/a"),
        ("https://[::1]:8443/a", "https://[::1]:8443/a", "https://[::1]:8443/a"),
        (
            "ssh://git@github.com/acme/nlp.git",
            "ssh://git@github.com/acme/nlp.git",
            "ssh://github.com/acme/nlp.git",
        ),
        ("ssh://git@h.example:2222/~ada/x", "ssh://git@h.example:2222/~ada/x", "ssh://h.example:2222/~ada/x"),
        ("ssh://h.example:22/x", "ssh://h.example/x", "ssh://h.example/x"),
        ("git@github.com:acme/nlp.git", "git@github.com:acme/nlp.git", "ssh://github.com/acme/nlp.git"),
        ("git@h.example:/srv/nlp.git", "git@h.example:/srv/nlp.git", "ssh://h.example/srv/nlp.git"),
    ],
)
def test_git_remotes(uri: str, url: str, origin: str) -> None:
    remote = parse_location(uri)
    assert isinstance(remote, GitRemote)
    assert (remote.url, remote.origin) == (url, origin)


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://code-bucket/a/b c/job?.tar.gz", "code-bucket", "a/b c/job?.tar.gz"),
        ("S3://code.bucket/x.zip", "code.bucket", "x.zip"),
        ("s3://code-bucket//x.zip", "code-bucket", "/x.zip"),
    ],
)
def test_s3_objects(uri: str, bucket: str, key: str) -> None:
    assert parse_location(uri) == S3Object(bucket, key)
    assert parse_location(uri).origin == f"s3://{bucket}/{key}"


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("http://h.example/x.git", "LW-SOURCE-SCHEME"),
        ("git://h.example/x.git", "LW-SOURCE-SCHEME"),
        ("file:///srv/x.git", "LW-SOURCE-SCHEME"),
        ("ftp://h.example/x.git", "LW-SOURCE-SCHEME"),
        ("ext::sh -c date", "LW-SOURCE-SCHEME"),
        ("codecommit::eu-west-1://x", "LW-SOURCE-SCHEME"),
        ("/srv/x.git", "LW-SOURCE-SCHEME"),
        ("./x", "LW-SOURCE-SCHEME"),
        ("x", "LW-SOURCE-SCHEME"),
        ("", "LW-SOURCE-SCHEME"),
        ("-u@h:x", "LW-SOURCE-SCHEME"),
        ("--upload-pack=date", "LW-SOURCE-SCHEME"),
        ("h.example:x", "LW-SOURCE-SCHEME"),
        ("git@-oProxyCommand=date:x", "LW-SOURCE-SCHEME"),
        ("git@h.example:-x", "LW-SOURCE-SCHEME"),
        ("git@h.example::x", "LW-SOURCE-SCHEME"),
        ("git@h.example:x y", "LW-SOURCE-SCHEME"),
        ("ssh://-oProxyCommand=date/x", "LW-SOURCE-URI"),
        ("ssh://-l@h.example/x", "LW-SOURCE-URI"),
        ("ssh://git:pw@h.example/x", "LW-SOURCE-URI"),
        ("https://h.example", "LW-SOURCE-URI"),
        ("https://h.example/", "LW-SOURCE-URI"),
        ("https:///x.git", "LW-SOURCE-URI"),
        ("https://h.example:99999/x", "LW-SOURCE-URI"),
        ("https://h.example:x/x", "LW-SOURCE-URI"),
        ("https://h.example\\@evil.example/x", "LW-SOURCE-URI"),
        ("https://h.example@x@evil.example/x", "LW-SOURCE-URI"),
        ("https://h.example/x?token=1", "LW-SOURCE-URI"),
        ("https://h.example/x#main", "LW-SOURCE-URI"),
        ("https://h.example/x y", "LW-SOURCE-URI"),
        ("https://h.example/x\n.git", "LW-SOURCE-URI"),
        ("https://h example/x", "LW-SOURCE-URI"),
        ("s3://bucket", "LW-SOURCE-URI"),
        ("s3://bucket/", "LW-SOURCE-URI"),
        ("s3://bucket/folder/", "LW-SOURCE-URI"),
        ("s3:///key.zip", "LW-SOURCE-URI"),
        ("s3://Bad_Bucket/key.zip", "LW-SOURCE-URI"),
    ],
)
def test_what_is_refused(uri: str, code: str) -> None:
    with pytest.raises(Never) as caught:
        parse_location(uri)
    assert caught.value.code == code
    assert "h.example:99999" in uri or "ssh takes" in str(caught.value) or "s3://BUCKET/" in str(caught.value)


def test_no_login_is_shown() -> None:
    remote = parse_remote("https://ada:s3cret@h.example/x")
    assert (remote.user, remote.password) == ("ada", "s3cret")
    assert "s3cret" not in f"{remote} {remote.url} {remote.origin}"
    assert "ada" not in f"{remote} {remote.url} {remote.origin}"
    for uri in (
        "https://ada:s3cret@h.example/x?y",
        "http://s3cret@h.example/x",
        "ssh://ada:s3cret@h.example/x",
    ):
        with pytest.raises(Never) as caught:
            parse_location(uri)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "https://bob:pa/ssw0rd@h.example/x.git",
        "https://bob:pa/ss@ssw0rd@h.example/x.git",
        "https://bob:pa?ssw0rd@h.example/x.git",
        "https://bob:pa#/ssw0rd@h.example/x.git",
        "ssh://bob:pa/ssw0rd@h.example/x.git",
        "https://h.example/x?token=ssw0rd",
    ],
)
def test_of_a_url_that_cannot_be_read_only_scheme_and_host_are_told(uri: str) -> None:
    with pytest.raises(Never, match=rf"^'{uri.partition(':')[0]}://h\.example' ") as caught:
        parse_location(uri)
    assert caught.value.code == "LW-SOURCE-URI"
    assert not [part for part in ("bob", "pa/", "ssw0rd", "token") if part in str(caught.value)]


def test_a_password_with_a_slash_is_taken_out_of_text() -> None:
    text = "fatal: 'https://bob:pa/ssw0rd@h.example/x/': see https://h.example:8080/a"
    assert without_login(text) == "fatal: 'https://h.example/x/': see https://h.example:8080/a"


def test_logins_are_taken_out_of_text() -> None:
    text = "fatal: unable to access 'https://ada:s3cret@h.example/x/': see http://b@c.example"
    assert without_login(text) == "fatal: unable to access 'https://h.example/x/': see http://c.example"


@pytest.mark.parametrize(
    ("parent", "url", "expected"),
    [
        ("https://h.example/acme/app.git", "../lib.git", "https://h.example/acme/lib.git"),
        ("https://h.example/acme/app.git/", "../lib.git", "https://h.example/acme/lib.git"),
        ("https://h.example/acme/app.git", "../../x/lib", "https://h.example/x/lib"),
        ("https://h.example/acme/app.git", "./lib", "https://h.example/acme/app.git/lib"),
        ("https://h.example/acme/app.git", ".././lib/", "https://h.example/acme/lib"),
        ("https://h.example/acme/app.git", "../../../lib", None),
        ("https://h.example/acme/app.git", "../..", None),
        ("https://h.example/acme/app.git", "../lib?x", None),
        ("ssh://git@h.example:2222/srv/app", "../lib", "ssh://git@h.example:2222/srv/lib"),
        ("git@h.example:acme/app.git", "../lib.git", "git@h.example:acme/lib.git"),
        ("git@h.example:app.git", "../lib.git", "git@h.example:lib.git"),
        ("git@h.example:app.git", "../../lib.git", None),
        ("git@h.example:/srv/app.git", "../lib.git", "git@h.example:/srv/lib.git"),
        ("git@h.example:acme/app.git", "../-x", "git@h.example:acme/-x"),
        ("git@h.example:app.git", "../-x", None),
    ],
)
def test_relative_submodules(parent: str, url: str, expected: str | None) -> None:
    remote = parse_remote(parent).relative(url)
    assert (remote and remote.url) == expected


def test_a_relative_submodule_has_its_parent_s_login() -> None:
    remote = parse_remote("https://ada:s3cret@h.example/acme/app").relative("../lib")
    assert remote is not None
    assert (remote.user, remote.password) == ("ada", "s3cret")
