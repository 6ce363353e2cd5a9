"""The key rotator as a function: Secret Manager's notices and the scheduler's calls, over the wire formats of both."""

import logging
from collections.abc import AsyncIterator

import pytest

from shared.bus import Delivery, Outcome
from shared.clock import ManualClock
from shared.config import load_settings
from shared.errors import ConfigurationError
from shared.keys.manager import SECRET
from shared.runtime import Runtime, load
from tests.support.secret_manager import PROJECT, Service, serving

KEY = "k" * 40
SETTLE, DAY = 600.0, 24 * 3600.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def service(clock: ManualClock) -> AsyncIterator[Service]:
    async with serving(clock) as one:
        one.put(SECRET, KEY)
        yield one


@pytest.fixture
async def live(service: Service, clock: ManualClock) -> AsyncIterator[Runtime]:
    settings = load_settings({"SECRETS_FROM": "secret-manager", "GCP_PROJECT_ID": PROJECT})
    one = Runtime(settings, clock=clock, serves=("key_rotator",), manager=service.manager())
    yield one
    await one.close()


def notice(event: str = "SECRET_ROTATE") -> Delivery:
    """What Secret Manager publishes: https://cloud.google.com/secret-manager/docs/event-notifications."""
    attributes = {"eventType": event, "dataFormat": "JSON_API_V1", "secretId": f"projects/1234/secrets/{SECRET}"}
    return Delivery(
        subscription="key-rotation.key_rotator",
        topic="key-rotation",
        data=b'{"name": "projects/1234/secrets/COMM_HMAC_KEYS"}',
        attributes=attributes,
        message_id="1",
        attempt=1,
    )


async def told(live: Runtime, event: str = "SECRET_ROTATE") -> Outcome:
    return await load("key_rotator").handlers(live)["key-rotation"](notice(event))


async def called(live: Runtime) -> None:
    timer = load("key_rotator").timer
    assert timer is not None
    await timer(live)


async def states(live: Runtime) -> dict[str, str]:
    held = await live.keys.read()
    return {key.id: held.state(key).value for key in held.keys}


async def test_a_notice_begins_a_rotation_and_the_schedulers_calls_finish_it(
    live: Runtime, service: Service, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert await told(live) is Outcome.ACK
    assert await states(live) == {"k1": "active", "k2": "verify"}
    await clock.advance(SETTLE)
    await called(live)
    assert await states(live) == {"k1": "verify", "k2": "active"}
    assert service.secrets[SECRET].aliases == {"active": 2}
    await clock.advance(DAY)
    await called(live)
    assert await states(live) == {"k1": "verify", "k2": "active"}
    await clock.advance(SETTLE)
    await called(live)
    assert await states(live) == {"k1": "retired", "k2": "active"}
    ages = [record.__dict__["ageDays"] for record in caplog.records if record.getMessage() == "signing key"]
    assert ages == [0, 0, 1, 1.01]
    await clock.advance(90 * DAY)
    await called(live)
    assert await states(live) == {"k1": "retired", "k2": "active"}, "the scheduler begins nothing"


async def test_other_notices_and_copies_begin_nothing(live: Runtime, clock: ManualClock) -> None:
    for event in ("SECRET_VERSION_ADD", "SECRET_UPDATE", "TOPIC_CONFIGURED", ""):
        assert await told(live, event) is Outcome.ACK
    assert await states(live) == {"k1": "active"}
    for _ in range(3):
        assert await told(live) is Outcome.ACK
    await clock.advance(SETTLE)
    await told(live)
    await told(live)
    assert await states(live) == {"k1": "verify", "k2": "active"}


@pytest.mark.parametrize("method", ["add_secret_version", "update_secret", "disable_secret_version"])
async def test_a_grant_that_is_missing_keeps_the_notice_on_the_bus(
    method: str, live: Runtime, service: Service, clock: ManualClock
) -> None:
    service.secrets[SECRET].refused = {method}

    async def rotated() -> None:
        for seconds in (0, SETTLE, SETTLE + DAY):
            await clock.advance(seconds)
            await told(live)

    with pytest.raises(ConfigurationError, match="gcloud secrets add-iam-policy-binding COMM_HMAC_KEYS"):
        await rotated()
    service.secrets[SECRET].refused = set()
    await told(live)
    for seconds in (SETTLE, SETTLE + DAY):
        await clock.advance(seconds)
        await called(live)
    held = await live.keys.read()
    assert [key.id for key in held.usable] == [held.active]
    assert held.active != "k1"


async def test_one_who_was_quicker_is_noticed_and_the_activation_tried_again(
    live: Runtime, service: Service, clock: ManualClock
) -> None:
    await told(live)
    await clock.advance(SETTLE)
    others = iter([1])

    def quicker(method: str) -> None:
        if method == "update_secret" and next(others, None):
            service.secrets[SECRET].changes += 1
            service.secrets[SECRET].annotations["somebody"] = "else"

    service.before = quicker
    await called(live)
    assert service.calls["update_secret"] == 2
    assert await states(live) == {"k1": "verify", "k2": "active"}
    assert service.secrets[SECRET].annotations.keys() == {"somebody", "activated-k2"}
