"""What Firestore's client raises, as the platform's errors.

By gRPC status: https://cloud.google.com/firestore/docs/understand-error-codes. The messages hold nothing of the service's own text,
which quotes document names.
"""

from google.api_core import exceptions as google

from shared.errors import AgentTeamError, ConfigurationError, Permanent, StoreUnavailable
from shared.google_errors import ANOTHER_SERVICE, LOG_IN, lacks_credentials

_PERMANENT = (google.InvalidArgument, google.OutOfRange)


def translate(error: Exception, where: str) -> AgentTeamError:
    """The platform's error for one of the driver's, the credentials' or the network's; `where` names project and database."""
    name = type(error).__name__
    match error:
        case AgentTeamError():
            return error
        case google.NotFound():
            return ConfigurationError(f"{where} has no such database; create it in native mode or correct GCP_PROJECT_ID")
        case google.Forbidden():
            return ConfigurationError(
                f"{where} refuses this service account; grant it roles/datastore.user and enable firestore.googleapis.com"
            )
        case _ if lacks_credentials(error):
            return ConfigurationError(f"{where} needs credentials; {LOG_IN}")
        case google.FailedPrecondition():
            # Lost races are told apart by the caller: what is left is a database in Datastore mode, or an API that is off.
            return ConfigurationError(f"{where} cannot be used like this; the database must be in native mode ({name})")
        case _ if isinstance(error, ANOTHER_SERVICE):
            return ConfigurationError(f"{where} does not answer as Firestore does ({name}); check the address")
        case _ if isinstance(error, _PERMANENT):
            return Permanent(f"{where} refuses the document ({name}); a value must stay below 1 MiB")
        case _:
            return StoreUnavailable(f"{where} cannot be reached or refuses work ({name})")
