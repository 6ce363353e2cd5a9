"""A double of Cloud Logging over real gRPC, as far as it is asked: entries by filter, in order, page by page.

https://cloud.google.com/logging/docs/reference/v2/rpc/google.logging.v2#loggingservicev2
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from google.cloud.logging_v2.types import ListLogEntriesRequest, ListLogEntriesResponse, LogEntry


@dataclass
class CloudLogging:
    """The log of a project, what it was asked, and how it refuses."""

    address: str = ""
    entries: list[LogEntry] = field(default_factory=list)
    asked: list[ListLogEntriesRequest] = field(default_factory=list)
    refuses: grpc.StatusCode | None = None
    page_size: int = 1000

    def add(self, at: datetime, service: str, insert_id: str, severity: str = "INFO", **fields: Any) -> None:
        """One line of a function, as it arrives."""
        self.entries.append(
            LogEntry(
                timestamp=at,
                insert_id=insert_id,
                severity=severity,
                resource={"type": "cloud_run_revision", "labels": {"service_name": service}},
                json_payload=fields,
            )
        )

    async def list_log_entries(self, request: ListLogEntriesRequest, context: Any) -> ListLogEntriesResponse:
        self.asked.append(request)
        if self.refuses is not None:
            await context.abort(self.refuses, "the service's own words, with an account's name in them")
        wanted = re.fullmatch(r'jsonPayload\.workflowId="(wf_\w+)" AND timestamp>="([^"]+)"', request.filter)
        assert wanted is not None, request.filter
        assert request.order_by == "timestamp asc"
        since = datetime.fromisoformat(wanted[2])
        found = [
            entry
            for entry in sorted(self.entries, key=lambda one: (one.timestamp, one.insert_id))
            if entry.timestamp >= since and entry.json_payload["workflowId"] == wanted[1]
        ]
        begin, size = int(request.page_token or 0), min(request.page_size, self.page_size)
        more = str(begin + size) if begin + size < len(found) else ""
        return ListLogEntriesResponse(entries=found[begin : begin + size], next_page_token=more)


@asynccontextmanager
async def cloud_logging() -> AsyncIterator[CloudLogging]:
    """The double on a port of its own."""
    double = CloudLogging()
    method = grpc.unary_unary_rpc_method_handler(
        double.list_log_entries,
        request_deserializer=ListLogEntriesRequest.deserialize,
        response_serializer=ListLogEntriesResponse.serialize,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("google.logging.v2.LoggingServiceV2", {"ListLogEntries": method}),)
    )
    double.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield double
    finally:
        await server.stop(None)
