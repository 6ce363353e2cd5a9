"""Every exception of Pub/Sub's client becomes one of the platform's."""

import inspect

import pytest
from google.api_core import exceptions as google
from google.auth import exceptions as auth

from shared.bus.pubsub_errors import translate
from shared.errors import AgentTeamError, BusUnavailable, ConfigurationError, InputError, RateLimited

WHERE = "Pub/Sub topic projects/p/topics/agent-writer"
ROLE = "roles/pubsub.publisher"
SECRET = "what the service itself says"

CONFIGURATION = {
    "AsyncRestUnsupportedParameterError": "PUBSUB_EMULATOR_HOST",
    "FailedPrecondition": "cannot be used like this",
    "Forbidden": ROLE,
    "MethodNotAllowed": "PUBSUB_EMULATOR_HOST",
    "MethodNotImplemented": "PUBSUB_EMULATOR_HOST",
    "MovedPermanently": "PUBSUB_EMULATOR_HOST",
    "NotFound": "terraform apply",
    "NotModified": "PUBSUB_EMULATOR_HOST",
    "PermissionDenied": ROLE,
    "Redirection": "PUBSUB_EMULATOR_HOST",
    "ResumeIncomplete": "PUBSUB_EMULATOR_HOST",
    "TemporaryRedirect": "PUBSUB_EMULATOR_HOST",
    "Unauthenticated": "gcloud auth",
    "Unauthorized": "gcloud auth",
}
INPUT = ("InvalidArgument", "OutOfRange")
UNAVAILABLE = (
    "Aborted",
    "AlreadyExists",
    "BadGateway",
    "BadRequest",
    "Cancelled",
    "ClientError",
    "Conflict",
    "DataLoss",
    "DeadlineExceeded",
    "DuplicateCredentialArgs",
    "GatewayTimeout",
    "GoogleAPICallError",
    "GoogleAPIError",
    "InternalServerError",
    "LengthRequired",
    "MissingStatusHeaderError",
    "PreconditionFailed",
    "RequestRangeNotSatisfiable",
    "ResourceExhausted",
    "ResumableTransferError",
    "RetryError",
    "ServerError",
    "ServiceUnavailable",
    "TooManyRequests",
    "TransferStalledError",
    "Unknown",
    "UnseekableStreamError",
    "UploadCancelledError",
)
CLASSES = {name: kind for name, kind in inspect.getmembers(google, inspect.isclass) if issubclass(kind, Exception)}


def test_each_error_of_the_driver_is_intended_to_be_something() -> None:
    assert set(CLASSES) == {*CONFIGURATION, *INPUT, *UNAVAILABLE}


@pytest.mark.parametrize("name", CLASSES)
def test_each_error_of_the_driver_is_translated(name: str) -> None:
    error = CLASSES[name].__new__(CLASSES[name])
    Exception.__init__(error, SECRET)
    intended = ConfigurationError if name in CONFIGURATION else InputError if name in INPUT else BusUnavailable
    says = translate(error, WHERE, ROLE)
    _says_one_clear_line(says, intended)
    assert CONFIGURATION.get(name, "") in str(says)


@pytest.mark.parametrize(
    ("error", "intended"),
    [
        (auth.DefaultCredentialsError(SECRET), ConfigurationError),  # type: ignore[no-untyped-call]
        (auth.RefreshError(SECRET), ConfigurationError),  # type: ignore[no-untyped-call]
        (auth.RefreshError(SECRET, retryable=True), BusUnavailable),  # type: ignore[no-untyped-call]
        (auth.TransportError(SECRET), BusUnavailable),  # type: ignore[no-untyped-call]
        (TimeoutError(), BusUnavailable),
        (OSError(SECRET), BusUnavailable),
        (RuntimeError(SECRET), BusUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_of_credentials_and_network_is_translated(error: Exception, intended: type[AgentTeamError]) -> None:
    _says_one_clear_line(translate(error, WHERE, ROLE), intended)


def test_an_error_of_ours_passes_as_it_is() -> None:
    error = RateLimited("later")
    assert translate(error, WHERE, ROLE) is error


def _says_one_clear_line(error: AgentTeamError, intended: type[AgentTeamError]) -> None:
    assert type(error) is intended
    assert str(error).startswith(WHERE)
    assert "\n" not in str(error)
    assert SECRET not in str(error)
