"""What Pub/Sub's client raises, as the platform's errors.

By gRPC status: https://cloud.google.com/pubsub/docs/reference/error-codes. The messages hold nothing of the service's own text.
"""

from typing import Final

from google.api_core import exceptions as google

from shared.errors import AgentTeamError, BusUnavailable, ConfigurationError, InputError
from shared.google_errors import ANOTHER_SERVICE, LOG_IN, lacks_credentials

_REFUSED: Final = (google.InvalidArgument, google.OutOfRange)


def translate(error: Exception, where: str, role: str) -> AgentTeamError:
    """The platform's error for one of the driver's, the credentials' or the network's.

    `where` is the topic or subscription with its project, `role` what using it needs.
    """
    name = type(error).__name__
    match error:
        case AgentTeamError():
            return error
        case google.NotFound():
            return ConfigurationError(f"{where} does not exist; create it with `terraform apply`, or correct GCP_PROJECT_ID")
        case google.Forbidden():
            return ConfigurationError(f"{where} refuses this service account; grant it {role} with `terraform apply`")
        case _ if lacks_credentials(error):
            return ConfigurationError(f"{where} needs credentials; {LOG_IN}")
        case google.FailedPrecondition():
            return ConfigurationError(f"{where} cannot be used like this ({name}); what is pushed cannot be pulled as well")
        case _ if isinstance(error, ANOTHER_SERVICE):
            return ConfigurationError(f"{where} does not answer as Pub/Sub does ({name}); check PUBSUB_EMULATOR_HOST")
        case _ if isinstance(error, _REFUSED):
            return InputError(
                f"{where} refuses the request ({name}); a message needs data or attributes, "
                "at most 100 attributes of 1,024 bytes and 10 MB in all"
            )
        case _:
            return BusUnavailable(f"{where} cannot be reached or refuses work ({name})")
