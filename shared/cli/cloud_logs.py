"""A workflow's log lines from Cloud Logging, of all functions together.

Entries arrive late and not in the order of their time, so whoever follows looks again at the last half minute each time and passes
over what has been seen, by insertId: https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry.
"""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from shared.cli.log_lines import Line, from_fields
from shared.clock import Clock
from shared.errors import AgentTeamError, ConfigurationError, HostUnavailable
from shared.ids import requested_at

if TYPE_CHECKING:
    from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2AsyncClient
    from google.cloud.logging_v2.types import LogEntry

MOST_LINES: Final = 20_000
_PAGE: Final = 1000
_CALL_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 4.0
_OVERLAP: Final = timedelta(seconds=30)
_AFTER_THE_END: Final = 2
"""How often whoever follows looks again once the workflow has ended: other functions' last lines come later."""


class CloudLog:
    """The log of a project. `channel` is another service's than Google's own."""

    def __init__(self, project: str, clock: Clock, *, channel: Any = None) -> None:
        self._project = project
        self._clock = clock
        self._channel = channel

    async def lines(self, workflow: str, *, follow: bool) -> AsyncIterator[Line]:
        """What all functions logged of a workflow, by time, `MOST_LINES` at most; with `follow` until it has ended.

        Raises ConfigurationError where the account may not read logs, HostUnavailable when the service does not answer.
        """
        seen: set[str] = set()
        since, ended, after_the_end = requested_at(workflow) - timedelta(minutes=1), False, 0
        async with self._client() as client:
            while True:
                async for entry in self._entries(client, workflow, since, MOST_LINES - len(seen)):
                    if entry.insert_id not in seen and len(seen) < MOST_LINES:
                        seen.add(entry.insert_id)
                        line = _line(entry)
                        ended = line.ends_after(ended)
                        since = max(since, line.at - _OVERLAP)
                        yield line
                after_the_end = after_the_end + 1 if ended else 0
                if not follow or len(seen) >= MOST_LINES or after_the_end > _AFTER_THE_END:
                    return
                await self._clock.sleep(_LOOK_SECONDS)

    async def _entries(
        self, client: "LoggingServiceV2AsyncClient", workflow: str, since: datetime, most: int
    ) -> "AsyncIterator[LogEntry]":
        request = {
            "resource_names": [f"projects/{self._project}"],
            "filter": f'jsonPayload.workflowId="{workflow}" AND timestamp>="{since.isoformat()}"',
            "order_by": "timestamp asc",
            "page_size": _PAGE,
        }
        left = most + _PAGE  # some may have been seen before
        try:
            async for entry in await client.list_log_entries(request, timeout=_CALL_SECONDS):
                yield entry
                left -= 1
                if left == 0:
                    return
        except Exception as error:
            raise self._translated(error) from error

    def _client(self) -> "LoggingServiceV2AsyncClient":
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2AsyncClient
        from google.cloud.logging_v2.services.logging_service_v2.transports import LoggingServiceV2GrpcAsyncIOTransport

        try:
            if self._channel is None:
                return LoggingServiceV2AsyncClient()
            return LoggingServiceV2AsyncClient(transport=LoggingServiceV2GrpcAsyncIOTransport(channel=self._channel))
        except DefaultCredentialsError as error:
            raise ConfigurationError("Cloud Logging needs credentials; `gcloud auth application-default login`") from error

    def _translated(self, error: Exception) -> AgentTeamError:
        from google.api_core import exceptions as google
        from google.auth.exceptions import GoogleAuthError

        project = self._project
        match error:
            case google.PermissionDenied():
                return ConfigurationError(
                    f"this account may not read the logs of {project}, or there is no such project; grant it the role with "
                    f"`gcloud projects add-iam-policy-binding {project} --member=user:YOU --role=roles/logging.viewer`"
                )
            case google.Unauthenticated() | GoogleAuthError():
                return ConfigurationError("Cloud Logging needs credentials; `gcloud auth application-default login`")
            case google.NotFound() | google.InvalidArgument():
                return ConfigurationError(f"Cloud Logging knows no project {project}; correct GCP_PROJECT_ID")
            case _:
                return HostUnavailable(f"Cloud Logging cannot be reached or refuses work ({type(error).__name__})")


def _line(entry: "LogEntry") -> Line:
    from google.cloud.logging_v2.types import LogEntry
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

    # Numbers of a Struct are floats; whole ones are shown as what they were.
    given = MessageToDict(LogEntry.pb(entry).json_payload)
    fields = {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in given.items()}
    labels = entry.resource.labels
    function = labels.get("service_name") or labels.get("job_name") or ""
    return from_fields(fields, at=entry.timestamp, function=function, severity=int(entry.severity))
