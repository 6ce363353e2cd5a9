"""A server that a test needs and the machine does not have."""

import pytest

from tests.support import servers


@pytest.fixture
def no_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "redis_binary", lambda: None)


@pytest.mark.usefixtures("no_redis")
def test_a_missing_server_fails_the_test_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="redis-server is not installed"), servers.redis_server():
        pass


@pytest.mark.usefixtures("no_redis")
def test_a_missing_server_skips_the_test_by_name_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="redis-server is not installed"), servers.redis_server():
        pass
