"""Every exception of Pub/Sub's client becomes one of the platform's."""

import pytest

from shared.bus.pubsub_errors import translate
from shared.errors import BusUnavailable, ConfigurationError, InputError, RateLimited
from tests.support.google_errors import AROUND, NAMES, raised, says_one_clear_line

WHERE = "Pub/Sub topic projects/p/topics/agent-writer"
ROLE = "roles/pubsub.publisher"

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


def test_each_error_of_the_driver_is_intended_to_be_something() -> None:
    assert set(NAMES) == {*CONFIGURATION, *INPUT, *UNAVAILABLE}


@pytest.mark.parametrize("name", NAMES)
def test_each_error_of_the_driver_is_translated(name: str) -> None:
    intended = ConfigurationError if name in CONFIGURATION else InputError if name in INPUT else BusUnavailable
    says = translate(raised(name), WHERE, ROLE)
    says_one_clear_line(says, intended, where=WHERE)
    assert CONFIGURATION.get(name, "") in str(says)


@pytest.mark.parametrize(("error", "lacks_credentials"), AROUND, ids=lambda value: type(value).__name__)
def test_each_error_of_credentials_and_network_is_translated(error: Exception, lacks_credentials: bool) -> None:
    intended = ConfigurationError if lacks_credentials else BusUnavailable
    says_one_clear_line(translate(error, WHERE, ROLE), intended, where=WHERE)


def test_an_error_of_ours_passes_as_it_is() -> None:
    error = RateLimited("later")
    assert translate(error, WHERE, ROLE) is error
