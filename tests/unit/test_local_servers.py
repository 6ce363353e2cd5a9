"""The servers that the local platform brings along, and what is said where there are none."""

from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.local import servers


def test_a_password_is_handed_to_redis_where_nobody_else_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "redis_binary", lambda: Path("/usr/bin/redis-server"))
    command, configuration = servers.redis_command(tmp_path / "redis", 6380, "hunter2", durable=True)

    assert command == ["/usr/bin/redis-server", "-"]
    lines = configuration.decode().splitlines()
    assert {"bind 127.0.0.1", "port 6380", "requirepass hunter2", "appendonly yes", "maxmemory-policy noeviction"} <= set(lines)
    assert (tmp_path / "redis").stat().st_mode & 0o777 == 0o700


def test_without_a_redis_it_is_said_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "redis_binary", lambda: None)
    with pytest.raises(ConfigurationError, match="there is no Redis here; set REDIS_URL to one, or install one"):
        servers.redis_command(tmp_path, 6380, "hunter2", durable=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "redis_binary", lambda: Path("/usr/bin/redis-server"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/redis cannot be made \(Not a directory\); set AGENT_TEAM_HOME"):
        servers.redis_command(tmp_path / "file" / "redis", 6380, "hunter2", durable=True)


def test_without_an_emulator_it_is_said_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "sdk_root", lambda: None)
    with pytest.raises(ConfigurationError, match="gcloud components install pubsub-emulator"):
        servers.emulator_command(8085)


def test_the_redis_of_the_wheel_goes_before_that_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert servers.redis_binary() is None
    (tmp_path / "redis-server").touch(mode=0o755)
    assert servers.redis_binary() == tmp_path / "redis-server"
