"""Every exception of Cloud Storage's client becomes one of the platform's."""

import pytest

from shared.errors import ConfigurationError, InputError, RateLimited, StoreUnavailable
from shared.outputs.gcs_errors import translate
from tests.support.google_errors import AROUND, NAMES, raised, says_one_clear_line

WHERE = "the bucket outputs"

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


def test_each_error_of_the_driver_is_intended_to_be_something() -> None:
    assert set(NAMES) == {*CONFIGURATION, *INPUT, *UNAVAILABLE}


@pytest.mark.parametrize("name", NAMES)
def test_each_error_of_the_driver_is_translated(name: str) -> None:
    intended = ConfigurationError if name in CONFIGURATION else InputError if name in INPUT else StoreUnavailable
    says = translate(raised(name), WHERE)
    says_one_clear_line(says, intended, where=WHERE)
    assert CONFIGURATION.get(name, "") in str(says)


@pytest.mark.parametrize(("error", "lacks_credentials"), AROUND, ids=lambda value: type(value).__name__)
def test_each_error_of_credentials_and_network_is_translated(error: Exception, lacks_credentials: bool) -> None:
    intended = ConfigurationError if lacks_credentials else StoreUnavailable
    says_one_clear_line(translate(error, WHERE), intended, where=WHERE)


def test_an_error_of_ours_passes_as_it_is() -> None:
    error = RateLimited("later")
    assert translate(error, WHERE) is error
