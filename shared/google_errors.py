"""What Google's clients raise alike, whichever service they ask: credentials that are missing, an address that is another's."""

from typing import Final

from google.api_core import exceptions as google
from google.auth import exceptions as auth

LOG_IN: Final = "run as a service account, or `gcloud auth application-default login`"
ANOTHER_SERVICE: Final = (
    google.Redirection,
    google.MethodNotAllowed,
    google.MethodNotImplemented,
    google.AsyncRestUnsupportedParameterError,
)
"""Answers that the service itself does not give."""


def lacks_credentials(error: Exception) -> bool:
    """Whether whoever asked showed none, or none that count. That the credentials' own service fails in passing is no such lack."""
    if isinstance(error, auth.GoogleAuthError) and error.retryable:
        return False
    return isinstance(error, google.Unauthorized | auth.DefaultCredentialsError | auth.RefreshError)
