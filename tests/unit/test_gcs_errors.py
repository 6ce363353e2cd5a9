"""Every exception of Cloud Storage's client becomes one of the platform's."""

import inspect

import pytest
from google.api_core import exceptions as google
from google.auth import exceptions as auth

from shared.errors import AgentTeamError, ConfigurationError, InputError, RateLimited, StoreUnavailable
from shared.outputs.gcs_errors import translate

WHERE = "the bucket outputs"
SECRET = "what the service itself says"

CONFIGURATION = {
    "AsyncRestUnsupportedParameterError": "check OUTPUTS_URL",
    "FailedPrecondition": "cannot be used like this",
    "Forbidden": "storage.objects.create",
    "MethodNotAllowed": "check OUTPUTS_URL",
    "MethodNotImplemented": "check OUTPUTS_URL",
    "MovedPermanently": "check OUTPUTS_URL",
    "NotFound": "terraform apply",
    "NotModified": "check OUTPUTS_URL",
    "PermissionDenied": "storage.objects.create",
    "Redirection": "check OUTPUTS_URL",
    "ResumeIncomplete": "check OUTPUTS_URL",
    "TemporaryRedirect": "check OUTPUTS_URL",
    "Unauthenticated": "gcloud auth",
    "Unauthorized": "gcloud auth",
}
INPUT = ("InvalidArgument", "LengthRequired", "OutOfRange")
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
    intended = ConfigurationError if name in CONFIGURATION else InputError if name in INPUT else StoreUnavailable
    says = translate(error, WHERE)
    _says_one_clear_line(says, intended)
    assert CONFIGURATION.get(name, "") in str(says)


@pytest.mark.parametrize(
    ("error", "intended"),
    [
        (auth.DefaultCredentialsError(SECRET), ConfigurationError),  # type: ignore[no-untyped-call]
        (auth.RefreshError(SECRET), ConfigurationError),  # type: ignore[no-untyped-call]
        (auth.RefreshError(SECRET, retryable=True), StoreUnavailable),  # type: ignore[no-untyped-call]
        (auth.TransportError(SECRET), StoreUnavailable),  # type: ignore[no-untyped-call]
        (TimeoutError(), StoreUnavailable),
        (OSError(SECRET), StoreUnavailable),
        (RuntimeError(SECRET), StoreUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_of_credentials_and_network_is_translated(error: Exception, intended: type[AgentTeamError]) -> None:
    _says_one_clear_line(translate(error, WHERE), intended)


def test_an_error_of_ours_passes_as_it_is() -> None:
    error = RateLimited("later")
    assert translate(error, WHERE) is error


def _says_one_clear_line(error: AgentTeamError, intended: type[AgentTeamError]) -> None:
    assert type(error) is intended
    assert str(error).startswith(WHERE)
    assert "\n" not in str(error)
    assert SECRET not in str(error)
