"""Every exception of redis-py's becomes one of the platform's."""

import inspect

import pytest
from redis import exceptions as driver

from shared.clock import ManualClock
from shared.errors import BusUnavailable, ConfigurationError, StoreUnavailable
from shared.guards import open_guards
from shared.redis.errors import translate

WHERE = "redis://cache.example:6379/0"
CONFIGURATION = {
    "AuthenticationError": "user or password",
    "AuthenticationWrongNumberOfArgsError": "user or password",
    "AuthorizationError": "user or password",
    "ExternalAuthProviderError": "user or password",
    "InvalidResponse": "is not Redis",
    "NoPermissionError": "does not allow",
}
TRANSIENT = {
    "AskError": "Redis Cluster",
    "BusyLoadingError": "still loading",
    "ChildDeadlockedError": "failed",
    "ClusterCrossSlotError": "refuses a call",
    "ClusterDownError": "Redis Cluster",
    "ClusterError": "Redis Cluster",
    "ConnectionError": "cannot be reached",
    "CrossSlotTransactionError": "Redis Cluster",
    "DataError": "failed",
    "ExecAbortError": "refuses a call",
    "IncorrectPolicyType": "failed",
    "InvalidPipelineStack": "Redis Cluster",
    "LockError": "failed",
    "LockNotOwnedError": "failed",
    "MasterDownError": "Redis Cluster",
    "MaxConnectionsError": "cannot be reached",
    "ModuleError": "refuses a call",
    "MovedError": "Redis Cluster",
    "NoScriptError": "refuses a call",
    "NoSuchFieldsetError": "refuses a call",
    "OutOfMemoryError": "is full",
    "PubSubError": "failed",
    "ReadOnlyError": "read-only replica",
    "RedisClusterException": "Redis Cluster",
    "RedisError": "failed",
    "ResponseError": "refuses a call",
    "SlotNotCoveredError": "Redis Cluster",
    "TimeoutError": "in time",
    "TryAgainError": "Redis Cluster",
    "WatchError": "failed",
}
CLASSES = {name: kind for name, kind in inspect.getmembers(driver, inspect.isclass) if issubclass(kind, Exception)}


def made(kind: type[Exception], text: str) -> Exception:
    """An instance, without the constructors of those that parse their text."""
    error = kind.__new__(kind)
    error.args = (text,)
    return error


def test_the_tables_name_every_exception_class() -> None:
    assert CONFIGURATION.keys() | TRANSIENT.keys() == CLASSES.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_every_exception_is_one_clear_line_with_the_host_and_nothing_of_the_drivers(name: str) -> None:
    error = translate(made(CLASSES[name], "secret command"), WHERE)

    assert type(error) is (ConfigurationError if name in CONFIGURATION else StoreUnavailable)
    assert (CONFIGURATION | TRANSIENT)[name] in str(error)
    assert WHERE in str(error)
    assert "secret" not in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "in time"),
        (ConnectionRefusedError(), "cannot be reached"),
        (RuntimeError("secret"), "failed (RuntimeError)"),
        (driver.ResponseError("MISCONF Redis is configured to save, but cannot"), "cannot write to its disk"),
        (
            driver.ResponseError("Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command not allowed "),
            "full",
        ),
        (driver.ResponseError("WRONGTYPE Operation against a key"), "refuses a call"),
    ],
)
def test_other_errors_are_transient_too(error: Exception, said: str) -> None:
    translated = translate(error, WHERE)

    assert type(translated) is StoreUnavailable
    assert said in str(translated)


def test_a_bus_is_told_of_itself_and_of_mistakes_as_everybody() -> None:
    assert type(translate(TimeoutError(), WHERE, unavailable=BusUnavailable)) is BusUnavailable
    assert type(translate(driver.AuthenticationError(), WHERE, unavailable=BusUnavailable)) is ConfigurationError


def test_the_platforms_own_errors_stay_what_they_are() -> None:
    own = BusUnavailable("x")
    assert translate(own, WHERE) is own


@pytest.mark.parametrize(
    "url",
    ["redis://user:secret@host:port/0", "http://host", "redis://:secret@host?no_such_option=1", "redis://:secret@host:99999999x"],
)
def test_a_malformed_url_is_a_configuration_error_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL") as refused:
        open_guards("redis", ManualClock(), redis_url=url)
    assert "secret" not in str(refused.value)


def test_redis_guards_without_a_url_are_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="set REDIS_URL"):
        open_guards("redis", ManualClock())
