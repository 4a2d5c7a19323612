"""Docker's ignore patterns: the table of its documentation, moby's own cases, and what differs from gitignore."""

from __future__ import annotations

import pytest

from worker.errors import Never, Stage
from worker.images.dockerignore import DockerIgnore


@pytest.mark.parametrize(
    ("patterns", "ignored", "sent"),
    [
        # Docker's documentation, "Build context", .dockerignore files
        (
            "# comment\n*/temp*\n*/*/temp*\ntemp?",
            ["some/temporary.txt", "some/temp"],
            ["temporary.txt", "a/b"],
        ),
        ("*/*/temp*", ["some/sub/temporary.txt"], ["some/temp", "a/b/c/temp"]),
        ("temp?", ["tempa", "tempb", "tempa/x"], ["temp", "tempab", "x/tempa"]),
        ("**/*.go", ["a.go", "x/a.go", "x/y/z/a.go"], ["a.gox"]),
        ("*.md\n!README.md", ["notes.md"], ["README.md", "docs/notes.md"]),
        ("*.md\n!README*.md\nREADME-secret.md", ["README-secret.md", "x.md"], ["README-x.md"]),
        ("*.md\nREADME-secret.md\n!README*.md", ["x.md"], ["README-secret.md"]),
        ("/foo/bar", ["foo/bar", "foo/bar/x"], ["x/foo/bar"]),
        ("foo/bar/", ["foo/bar"], ["x/foo/bar"]),
        (".", [], ["a", "b/c"]),
        ("", [], ["a"]),
        # anchored at the root: unlike gitignore
        ("node_modules", ["node_modules", "node_modules/x/y"], ["web/node_modules"]),
        ("*.pyc", ["a.pyc"], ["x/a.pyc"]),
        # moby's patternmatcher: `**`
        ("**", ["a", "a/b", ".x"], []),
        ("**/", ["a", "a/b"], []),
        ("dir/**", ["dir/a", "dir/a/b"], ["dir", "dir2/a"]),
        ("**/foo", ["foo", "a/foo", "a/b/foo", "foo/x"], ["xfoo", "a/foox"]),
        ("**foo", ["foo", "xfoo", "a/xfoo"], ["foox"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb"]),
        ("a**/b", ["ab", "ax/b", "a/x/b"], ["a"]),
        ("**/foo/**", ["foo/x", "a/foo/x"], ["foo", "a/foo"]),
        ("**/dir2/*", ["dir/dir2/.gitignore", "dir2/x"], ["dir2"]),
        (".*", [".foo", ".git/config"], ["foo", "a/.foo"]),
        # characters that mean something elsewhere
        ("a(b)c+{d}$.txt", ["a(b)c+{d}$.txt"], ["abc"]),
        ("a.b", ["a.b"], ["axb"]),
        ("[a-c]x", ["ax", "cx"], ["dx"]),
        ("[^a-c]x", ["dx"], ["ax"]),
        ("\\*x", ["*x"], ["ax"]),
        ("a\\b", ["ab"], ["a\\b"]),
        ("[[&|~]x", ["[x", "&x", "~x"], ["x"]),
        # spaces, comments, the byte order mark
        ("  a.txt  ", ["a.txt"], ["b.txt"]),
        ("my file", ["my file"], ["my"]),
        ("*\n! a", ["b"], ["a"]),
        (" # no comment", ["# no comment"], []),
        ("\ufeffa", ["a"], []),
        ("a\r\nb\r\n", ["a", "b"], ["c"]),
        # cleaned as Go's filepath.Clean does
        ("./a", ["a"], ["b"]),
        ("a/../b", ["b"], ["a"]),
        ("../a", [], ["a"]),
        ("a//b", ["a/b"], []),
        ("//a", ["a"], []),
        ("/", [], ["a"]),
        # exceptions
        ("!a", [], ["a"]),
        ("*\n!a", ["b", "b/a"], ["a", "a/b"]),
        ("dir\n!dir/keep", ["dir/x", "dir"], ["dir/keep", "dir/keep/y"]),
        ("a\n!a\na", ["a"], []),
    ],
)
def test_table(patterns: str, ignored: list[str], sent: list[str]) -> None:
    ignore = DockerIgnore(patterns)
    assert [path for path in [*ignored, *sent] if ignore.ignores(path)] == ignored


@pytest.mark.parametrize(
    ("patterns", "folder", "all_beneath"),
    [
        ("dir", "dir", True),
        ("*\n!keep", "dir", True),
        ("*\n!dir/keep", "dir", False),
        ("*\n!dir/sub/keep", "dir/sub", False),
        ("*\n!dir2/keep", "dir", True),
        ("*\n!**/*.py", "a/b", False),
        ("*\n!a/*/keep", "a/b", False),
        ("*\n!a/*/keep", "b", True),
        ("*\n!a/b/*.py", "a", False),
    ],
)
def test_folders_that_need_not_be_looked_into(patterns: str, folder: str, all_beneath: bool) -> None:
    assert DockerIgnore(patterns).ignores_all_beneath(folder) is all_beneath


@pytest.mark.parametrize("pattern", ["[", "a[]", "[b-a]", "!", "ok\n  !  "])
def test_what_docker_refuses_is_refused_with_its_line(pattern: str) -> None:
    with pytest.raises(Never, match=rf"^\.dockerignore line {len(pattern.splitlines())}, ") as raised:
        DockerIgnore(pattern)
    assert (raised.value.code, raised.value.stage) == ("LW-DOCKERIGNORE", Stage.BUILD)


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 30_000 + "b",
        "**/a/" * 13_000 + "b",
        "**a*" * 15_000 + "b",
        "[a-z]*" * 10_000 + "0",
        "?*" * 32_000 + "b",
    ],
    ids=["stars", "folders", "both", "classes", "any"],
)
@pytest.mark.parametrize(
    "path", ["a" * 120, "a/" * 1_000 + "a", "a" * 4_000], ids=["name", "folders", "long"]
)
@pytest.mark.timeout(30)  # what backtracks takes years
def test_no_pattern_takes_long(pattern: str, path: str) -> None:
    assert not DockerIgnore(pattern).ignores(path)
    assert DockerIgnore("*a*a*a*a*a*ab*").ignores(path) is False


def test_a_pattern_that_would_backtrack_matches_all_the_same() -> None:
    assert DockerIgnore("*a" * 50 + "b").ignores("a" * 120 + "b")


def test_a_line_longer_than_docker_reads_is_refused_and_not_quoted_whole() -> None:
    with pytest.raises(Never, match="longer than 65535 characters") as raised:
        DockerIgnore("a\n" + "*" * 65_536)
    assert len(str(raised.value)) < 300
