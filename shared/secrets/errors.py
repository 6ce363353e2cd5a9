"""What Secret Manager's client raises, as the platform's errors. The messages hold nothing of the service's own text.

By gRPC status: https://cloud.google.com/secret-manager/docs/reference/rpc.
"""

from google.api_core import exceptions as google

from shared.errors import AgentTeamError, ConfigurationError, StoreUnavailable
from shared.google_errors import LOG_IN, lacks_credentials


def translate(error: Exception, secret: str, *, project: str, member: str, role: str) -> AgentTeamError:
    """The platform's error for one of the driver's, the credentials' or the network's. `member` needs `role` for the call."""
    name = type(error).__name__
    match error:
        case AgentTeamError():
            return error
        case google.NotFound() | google.FailedPrecondition():
            return ConfigurationError(
                f"secret {secret} of project {project} does not exist or has no enabled version; create it with `terraform apply`, "
                f"then: gcloud secrets versions add {secret} --project={project} --data-file=-"
            )
        case google.Forbidden():
            return ConfigurationError(
                f"secret {secret} of project {project} refuses this account; "
                f"gcloud secrets add-iam-policy-binding {secret} --project={project} --member={member} --role={role}"
            )
        case _ if lacks_credentials(error):
            return ConfigurationError(f"secret {secret} of project {project} needs credentials; {LOG_IN}")
        case google.InvalidArgument() | google.MethodNotImplemented():
            return ConfigurationError(f"secret {secret} of project {project} cannot be asked for ({name}); correct GCP_PROJECT_ID")
        case _:
            return StoreUnavailable(f"Secret Manager cannot be reached or refuses work for secret {secret} ({name})")
