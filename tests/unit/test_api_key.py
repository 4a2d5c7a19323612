"""The worker's W&B key: where it is found, and what happens when W&B refuses it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from worker.clients.api_key import ApiKey, KeyPlaces
from worker.errors import Again, SettingsError
from worker.launch.redaction import KnownSecrets

OLD, NEW, NETRC = "o" * 40, "n" * 40, "r" * 40


def places(
    source: str = "",
    *,
    environment: str = "",
    netrc: Path = Path("/dev/null"),
    base_url: str = "https://api.wandb.ai",
) -> KeyPlaces:
    return KeyPlaces(source, environment, base_url, netrc, "us-east-1")


@pytest.fixture
def netrc(tmp_path: Path) -> Path:
    file = tmp_path / "netrc"
    file.write_text(
        f"machine api.wandb.ai\n  login user\n  password {NETRC}\n"
        "machine wandb.example.com:8080\n  login user\n  password  hosted\n"
    )
    return file


async def test_the_environment_comes_first_and_netrc_after_it(netrc: Path) -> None:
    assert await places(environment=OLD, netrc=netrc).read() == OLD
    assert await places(netrc=netrc).read() == NETRC
    assert await places().read() == ""
    assert await places(netrc=netrc.parent / "absent").read() == ""
    assert await places("environment", environment=OLD, netrc=netrc).read() == OLD
    assert await places("netrc", environment=OLD, netrc=netrc).read() == NETRC


async def test_a_key_in_the_environment_may_end_in_a_line_break_but_is_a_key(netrc: Path) -> None:
    assert await places(environment=f"{OLD}\n").read() == OLD
    assert await places(environment=" \n", netrc=netrc).read() == NETRC
    with pytest.raises(SettingsError, match=r"^WANDB_API_KEY: ") as raised:
        await places(environment="two words").read()
    assert "two words" not in str(raised.value)


@pytest.mark.parametrize(
    ("base_url", "key"),
    [
        ("https://api.wandb.ai/", NETRC),
        ("http://wandb.example.com:8080", "hosted"),
        ("https://wandb.example.com", ""),
        ("https://elsewhere.example.com", ""),
    ],
)
async def test_the_machine_in_netrc_is_the_servers_host_and_port(
    netrc: Path, base_url: str, key: str
) -> None:
    assert await places(netrc=netrc, base_url=base_url).read() == key


@pytest.fixture
def home(netrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a netrc in it."""
    monkeypatch.setenv("HOME", str(netrc.parent))
    netrc.rename(netrc.parent / ".netrc").chmod(0o600)


@pytest.mark.usefixtures("home")
async def test_home_is_where_netrc_is() -> None:
    assert await KeyPlaces("", "", "https://api.wandb.ai", None, "").read() == NETRC


@pytest.mark.parametrize("source", ["environment", "netrc"])
async def test_a_key_that_is_not_where_it_was_said_to_be(source: str) -> None:
    with pytest.raises(SettingsError, match=r"^LAUNCH_WANDB_API_KEY_SOURCE: "):
        await places(source).read()


@pytest.mark.parametrize("text", [f"{OLD}\nmachine\n", f"machine api.wandb.ai password {OLD} {OLD}"])
def test_a_broken_netrc_is_told_and_not_quoted(netrc: Path, text: str) -> None:
    netrc.write_text(text)
    with pytest.raises(SettingsError, match=r"^NETRC: .*line \d") as raised:
        asyncio.run(places(netrc=netrc).read())
    assert OLD not in str(raised.value)
    assert raised.value.__cause__ is None


class Source:
    """A place whose key changes."""

    def __init__(self, *values: str | Exception) -> None:
        self.values = list(values)
        self.reads = 0

    async def read(self) -> str:
        self.reads += 1
        await asyncio.sleep(0)
        value = self.values.pop(0)
        if isinstance(value, Exception):
            raise value
        return value


async def test_a_refused_key_is_read_again_and_the_new_one_is_known_as_a_secret() -> None:
    source, secrets = Source(NEW), KnownSecrets()
    key = ApiKey(OLD, read=source.read, secrets=secrets)
    assert await key.replaced(OLD)
    assert key.value == NEW
    assert {OLD, NEW} <= set(secrets)
    assert OLD not in f"{key} {key!r} {secrets!r}"


async def test_those_refused_together_read_once() -> None:
    source = Source(NEW)
    key = ApiKey(OLD, read=source.read)
    assert await asyncio.gather(*(key.replaced(OLD) for _ in range(20))) == [True] * 20
    assert source.reads == 1


async def test_the_same_key_is_no_new_one_and_is_not_read_all_the_time() -> None:
    now = 0.0
    source = Source(OLD, NEW)
    key = ApiKey(OLD, read=source.read, pause=60, clock=lambda: now)
    assert not await key.replaced(OLD)
    now = 59.0
    assert not await key.replaced(OLD)
    assert source.reads == 1
    now = 60.0
    assert await key.replaced(OLD)


@pytest.mark.parametrize("trouble", [Again("no answer"), SettingsError("gone"), ""])
async def test_trouble_with_the_place_leaves_the_key(trouble: Exception | str) -> None:
    key = ApiKey(OLD, read=Source(trouble).read)
    assert not await key.replaced(OLD)
    assert key.value == OLD


async def test_a_key_without_a_place_stays() -> None:
    assert not await ApiKey(OLD).replaced(OLD)
    assert await ApiKey(NEW).replaced(OLD), "somebody has replaced it already"


def test_known_secrets_are_bounded_and_forget_the_oldest() -> None:
    secrets = KnownSecrets([""])
    for n in range(1000):
        secrets.add(f"secret-{n:03}", "always-kept")
        secrets.add_passing(f"passing-{n:03}")
    found = list(secrets)
    assert len(found) == 200
    assert {"secret-999", "always-kept", "passing-999"} <= set(found)
    assert not {"secret-001", "passing-001"} & set(found)


def test_what_may_stand_anywhere_by_chance_is_no_known_secret() -> None:
    assert list(KnownSecrets(["main", "1234567", "12345678"])) == ["12345678"]
