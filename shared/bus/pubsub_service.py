"""The way to Pub/Sub: publish, pull, acknowledge, and create what an emulator lacks. One connection, made with the first call.

Uses the service's generated asyncio clients: those above them publish on a timer of their own and pull in threads. Every call has
a timeout; the first moments of an outage, such as a connection that died while the instance had no CPU, are tried again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, TypeVar

import grpc.aio  # type: ignore[import-untyped]
from google.api_core import exceptions as google
from google.api_core.retry_async import AsyncRetry, if_exception_type
from google.auth import default as default_credentials
from google.pubsub_v1.services.publisher import PublisherAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber import SubscriberAsyncClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from google.pubsub_v1.types import (
    AcknowledgeRequest,
    ModifyAckDeadlineRequest,
    PublishRequest,
    PullRequest,
    PullResponse,
    Topic,
)
from google.pubsub_v1.types import Subscription as SubscriptionRequest

from shared.bus.base import Message, Subscription
from shared.bus.policy import RETENTION_SECONDS
from shared.bus.pubsub_errors import translate

_CALL_SECONDS: Final = 15.0
_ATTEMPT_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 3.0
_PULL_SECONDS: Final = 10.0
"""How long a pull waits for messages. What the service hands to a pull that was cut off comes again after the deadline."""
_SCOPES: Final = ("https://www.googleapis.com/auth/pubsub",)
_CHANNEL: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),  # the default, 4 MiB, is less than eight large messages
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # the default is two minutes
)
_PUBLISHER: Final = "roles/pubsub.publisher"
_SUBSCRIBER: Final = "roles/pubsub.subscriber"
_EDITOR: Final = "roles/pubsub.editor"
_LEAST_DEADLINE_SECONDS, _MOST_SECONDS = 10, 600
_LEAST_ATTEMPTS, _MOST_ATTEMPTS = 5, 100
_ANSWER = TypeVar("_ANSWER")


def ack_deadline_seconds(subscription: Subscription) -> int:
    """The subscription's deadline as Pub/Sub can keep it: whole seconds, 10 to 600."""
    return min(max(ceil(subscription.ack_deadline_seconds), _LEAST_DEADLINE_SECONDS), _MOST_SECONDS)


@dataclass(frozen=True, slots=True)
class _Clients:
    channel: Any
    publisher: PublisherAsyncClient
    subscriber: SubscriberAsyncClient


class PubSubService:
    """Topics and subscriptions of one project. `emulator` is host:port of an emulator, which needs no credentials."""

    def __init__(self, project: str, *, emulator: str | None = None) -> None:
        self._project = project
        self._emulator = emulator
        self._clients: _Clients | None = None
        self._opening = asyncio.Lock()
        self._retry = AsyncRetry(
            if_exception_type(google.ServiceUnavailable, google.InternalServerError, google.Aborted),
            initial=0.05,
            maximum=0.5,
            multiplier=2,
            timeout=_RETRY_SECONDS,
        )

    def topic(self, name: str) -> str:
        """The full name of a topic."""
        return f"projects/{self._project}/topics/{name}"

    def subscription(self, name: str) -> str:
        """The full name of a subscription."""
        return f"projects/{self._project}/subscriptions/{name}"

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Store messages of one topic, which must fit into one request."""
        request = PublishRequest(topic=self.topic(topic))
        added = PublishRequest.pb(request).messages
        for message in messages:
            one = added.add()
            one.data = message.data
            one.attributes.update(message.attributes)
        await self._call(
            lambda to: to.publisher.publish(request, retry=self._retry, timeout=_ATTEMPT_SECONDS),
            f"topic {request.topic}",
            _PUBLISHER,
        )

    async def pull(self, subscription: str, most: int) -> Sequence[Any]:
        """Up to `most` messages as soon as there are any, with ack_id, delivery_attempt and message; none after some seconds."""
        request = PullRequest(subscription=self.subscription(subscription), max_messages=most)

        async def call(to: _Clients) -> PullResponse | None:
            try:
                return await to.subscriber.pull(request, retry=None, timeout=_PULL_SECONDS)
            except google.DeadlineExceeded:
                return None

        answer = await self._call(call, f"subscription {request.subscription}", _SUBSCRIBER)
        return () if answer is None else PullResponse.pb(answer).received_messages

    async def acknowledge(self, subscription: str, ack_ids: Sequence[str]) -> None:
        """Settle deliveries."""
        request = AcknowledgeRequest(subscription=self.subscription(subscription), ack_ids=ack_ids)
        await self._call(
            lambda to: to.subscriber.acknowledge(request, retry=self._retry, timeout=_ATTEMPT_SECONDS),
            f"subscription {request.subscription}",
            _SUBSCRIBER,
        )

    async def give_back(self, subscription: str, ack_ids: Sequence[str]) -> None:
        """Have deliveries made again, after the subscription's backoff."""
        await self.extend(subscription, ack_ids, 0)

    async def extend(self, subscription: str, ack_ids: Sequence[str], seconds: int) -> None:
        """Have deliveries made again `seconds` from now, 600 at most, unless they are settled or extended until then."""
        request = ModifyAckDeadlineRequest(
            subscription=self.subscription(subscription), ack_ids=ack_ids, ack_deadline_seconds=seconds
        )
        await self._call(
            lambda to: to.subscriber.modify_ack_deadline(request, retry=self._retry, timeout=_ATTEMPT_SECONDS),
            f"subscription {request.subscription}",
            _SUBSCRIBER,
        )

    async def create_topic(self, name: str) -> None:
        """Create a topic, unless it is there."""
        request = Topic(name=self.topic(name))

        async def call(to: _Clients) -> None:
            try:
                await to.publisher.create_topic(request, retry=self._retry, timeout=_ATTEMPT_SECONDS)
            except google.AlreadyExists:
                return

        await self._call(call, f"topic {request.name}", _EDITOR)

    async def create_subscription(self, subscription: Subscription) -> None:
        """Create a pull subscription whose topics are there, unless it is there itself."""
        request = self._described(subscription)

        async def call(to: _Clients) -> None:
            try:
                await to.subscriber.create_subscription(request, retry=self._retry, timeout=_ATTEMPT_SECONDS)
            except google.AlreadyExists:
                return

        await self._call(call, f"subscription {request.name}", _EDITOR)

    async def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        clients, self._clients = self._clients, None
        if clients is not None:
            await clients.channel.close()

    def _described(self, subscription: Subscription) -> SubscriptionRequest:
        request = SubscriptionRequest(
            name=self.subscription(subscription.name),
            topic=self.topic(subscription.topic),
            ack_deadline_seconds=ack_deadline_seconds(subscription),
        )
        described = SubscriptionRequest.pb(request)
        described.message_retention_duration.FromSeconds(int(RETENTION_SECONDS))
        least, most = described.retry_policy.minimum_backoff, described.retry_policy.maximum_backoff
        least.FromNanoseconds(int(min(subscription.min_backoff_seconds, _MOST_SECONDS) * 1e9))
        most.FromNanoseconds(int(min(subscription.max_backoff_seconds, _MOST_SECONDS) * 1e9))
        if subscription.dead_letter_topic is not None:
            described.dead_letter_policy.dead_letter_topic = self.topic(subscription.dead_letter_topic)
            attempts = min(max(subscription.max_attempts, _LEAST_ATTEMPTS), _MOST_ATTEMPTS)
            described.dead_letter_policy.max_delivery_attempts = attempts
        return request

    async def _call(self, call: Callable[[_Clients], Awaitable[_ANSWER]], where: str, role: str) -> _ANSWER:
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                return await call(self._clients if self._clients is not None else await self._open())
        except Exception as error:
            raise translate(error, f"Pub/Sub {where}", role) from error

    async def _open(self) -> _Clients:
        async with self._opening:
            if self._clients is None:
                if self._emulator is not None:
                    channel = grpc.aio.insecure_channel(self._emulator, options=_CHANNEL)
                else:
                    # Asks files and, outside of them, the metadata server: neither may hold up the event loop.
                    credentials, _ = await asyncio.to_thread(default_credentials, scopes=_SCOPES)
                    channel = PublisherGrpcAsyncIOTransport.create_channel(credentials=credentials, options=_CHANNEL)
                self._clients = _Clients(
                    channel,
                    PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel)),
                    SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel)),
                )
        return self._clients
