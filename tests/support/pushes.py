"""Push requests as Pub/Sub sends them."""

import base64
from datetime import timedelta
from typing import Any

from shared.bus import Message
from shared.clock import Clock
from shared.messages import StepDispatched
from tests.support.doubles import WORKFLOW, sender


def raw_push(message: Message, subscription: str) -> dict[str, Any]:
    """The body of a push of `message` to `subscription`, snake_case twins included, as the service writes it."""
    return {
        "message": {
            "data": base64.b64encode(message.data).decode(),
            "attributes": dict(message.attributes),
            "messageId": "1234",
            "message_id": "1234",
            "publishTime": "2026-01-01T00:00:00Z",
            "publish_time": "2026-01-01T00:00:00Z",
            "orderingKey": "",
        },
        "subscription": f"projects/p/subscriptions/{subscription}",
        "deliveryAttempt": 3,
    }


def structured(message: Message, subscription: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of the same push as a structured CloudEvent."""
    event = {
        "specversion": "1.0",
        "id": "1234",
        "source": f"//pubsub.googleapis.com/projects/p/topics/{message.topic}",
        "type": "google.cloud.pubsub.topic.v1.messagePublished",
        "datacontenttype": "application/json",
        "data": raw_push(message, subscription),
    }
    return {"content-type": "application/cloudevents+json; charset=utf-8"}, event


def binary(message: Message, subscription: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of the same push as a binary CloudEvent."""
    headers = {
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": "1234",
        "ce-source": f"//pubsub.googleapis.com/projects/p/topics/{message.topic}",
        "ce-type": "google.cloud.pubsub.topic.v1.messagePublished",
    }
    return headers, raw_push(message, subscription)


def dispatch_for_writer(clock: Clock) -> Message:
    """A step for the writer: the draft of a small report."""
    question = "When did the ferry to Oban leave?"
    order = StepDispatched(
        workflow=WORKFLOW,
        step="draft",
        attempt=1,
        agent="writer",
        input={
            "plan": {"title": "The ferry", "summary": "The ferry to Oban was late.", "questions": [question]},
            "findings": [
                {
                    "question": question,
                    "findings": [{"claim": "It left at noon.", "evidence": "The ferry to Oban left at noon.", "confidence": 0.9}],
                    "gaps": [],
                }
            ],
        },
        deadline=clock.now() + timedelta(seconds=900),
    )
    return sender("orchestrator", clock).dispatch(order, cause=None, traceparent=None)
