"""A stand-in for Pub/Sub that counts requests, and refuses or stalls as told: what the emulator cannot be made to do.

A real gRPC server over the service's own types. It keeps nothing: what the tests give it, pulls are answered with.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from google.pubsub_v1.types import (
    AcknowledgeRequest,
    ModifyAckDeadlineRequest,
    PublishRequest,
    PublishResponse,
    PullRequest,
    PullResponse,
)

from shared.bus import Message

_ANSWERS: dict[str, dict[str, tuple[Any, Any]]] = {
    "Publisher": {"Publish": (PublishRequest, PublishResponse)},
    "Subscriber": {
        "Pull": (PullRequest, PullResponse),
        "Acknowledge": (AcknowledgeRequest, None),
        "ModifyAckDeadline": (ModifyAckDeadlineRequest, None),
    },
}


class PubSubDouble:
    """What was asked, and what will be answered."""

    def __init__(self) -> None:
        self.address = ""
        self.published: list[PublishRequest] = []
        self.published_bytes: list[int] = []
        self.pulled: list[int] = []
        """How many messages each pull asked for."""
        self.acknowledged: list[Sequence[str]] = []
        self.given_back: list[Sequence[str]] = []
        self.refusal: Any = None
        """A status that publishing and pulling are refused with."""
        self.refused = 0
        self.let_go = asyncio.Event()
        """While it is not set, publishing and settling hang."""
        self.let_go.set()
        self.busy = self.busiest = 0
        self._waiting: asyncio.Queue[Any] = asyncio.Queue()

    def hand_out(self, *messages: Message) -> None:
        """Have the next pulls answered with these."""
        for number, message in enumerate(messages):
            one = PullResponse.pb(PullResponse()).received_messages.add()
            one.ack_id = f"ack-{number}"
            one.message.data = message.data
            one.message.message_id = str(number)
            self._waiting.put_nowait(one)

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        """One call."""
        if self.refusal is not None and method in ("Publish", "Pull"):
            self.refused += 1
            await context.abort(self.refusal, "no, for reasons that nobody but the service may tell")
        if method == "Pull":
            return await self._pull(request.max_messages)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await self.let_go.wait()
        self.busy -= 1
        if method == "Publish":
            self.published.append(request)
            self.published_bytes.append(PublishRequest.pb(request).ByteSize())
            return PublishResponse(message_ids=[str(number) for number in range(len(request.messages))])
        ids = self.acknowledged if method == "Acknowledge" else self.given_back
        ids.append(list(request.ack_ids))
        return empty_pb2.Empty()

    async def _pull(self, most: int) -> PullResponse:
        self.pulled.append(most)
        answer = PullResponse()
        found = PullResponse.pb(answer).received_messages
        found.append(await self._waiting.get())
        while len(found) < most and not self._waiting.empty():
            found.append(self._waiting.get_nowait())
        return answer


@asynccontextmanager
async def pubsub_double() -> AsyncIterator[PubSubDouble]:
    """A running one."""
    double = PubSubDouble()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 10_000_000)])
    for service, methods in _ANSWERS.items():
        handlers = {name: _handler(double, name, *types) for name, types in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"google.pubsub.v1.{service}", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    double.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield double
    finally:
        await server.stop(None)


def _handler(double: PubSubDouble, method: str, request_type: Any, answer_type: Any) -> Any:
    async def call(request: Any, context: Any) -> Any:
        return await double.answer(method, request, context)

    serialize = empty_pb2.Empty.SerializeToString if answer_type is None else answer_type.serialize
    return grpc.unary_unary_rpc_method_handler(call, request_deserializer=request_type.deserialize, response_serializer=serialize)
