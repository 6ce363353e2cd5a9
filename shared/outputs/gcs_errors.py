"""What Cloud Storage's client raises, as the platform's errors.

By HTTP status: https://cloud.google.com/storage/docs/json_api/v1/status-codes. The messages hold nothing of the service's own text,
which quotes names and accounts.
"""

from typing import Final

from google.api_core import exceptions as google

from shared.errors import AgentTeamError, ConfigurationError, InputError, StoreUnavailable
from shared.google_errors import ANOTHER_SERVICE, LOG_IN, lacks_credentials

_REFUSED: Final = (google.InvalidArgument, google.OutOfRange, google.LengthRequired)


def translate(error: Exception, where: str) -> AgentTeamError:
    """The platform's error for one of the driver's, the credentials' or the network's; `where` is the bucket."""
    name = type(error).__name__
    match error:
        case AgentTeamError():
            return error
        case google.NotFound():
            return ConfigurationError(f"{where} does not exist; create it with `terraform apply`, or correct OUTPUTS_URL")
        case google.Forbidden():
            return ConfigurationError(
                f"{where} refuses this service account; grant it storage.objects.create, .get and .update with `terraform apply`"
            )
        case _ if lacks_credentials(error):
            return ConfigurationError(f"{where} needs credentials; {LOG_IN}")
        case google.FailedPrecondition():
            return ConfigurationError(f"{where} cannot be used like this ({name}); see whether it is locked or its billing is off")
        case _ if isinstance(error, ANOTHER_SERVICE):
            return ConfigurationError(f"{where} does not answer as Cloud Storage does ({name}); check OUTPUTS_URL")
        case _ if isinstance(error, _REFUSED):
            return InputError(f"{where} refuses the output ({name})")
        case _:
            return StoreUnavailable(f"{where} cannot be reached or refuses work ({name})")
