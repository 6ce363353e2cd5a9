"""Rotation: add → wait until every process has the key → activate → wait out what the old key signed → retire.

What comes next follows from the keys alone, so whoever is killed, at any point, goes on where it stopped, and two at once do no
harm: activating and retiring can be repeated, and of two keys that were added at once the later one signs and the other is
retired as an old one.

The grace begins only when every process signs with the new key: a message that the old one signed lives for a day after that.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from math import ceil
from typing import Final

from shared.clock import Clock
from shared.errors import Conflict
from shared.keys.base import Key, KeySet, KeyStore

_log = logging.getLogger(__name__)
GRACE_SECONDS: Final = 24 * 3600.0
_REFRESHES: Final = 2
"""After so many refreshes every process has a key: one may have begun just before it was added, and taken a while."""


class Action(Enum):
    """What a step of the rotation does."""

    ADD = auto()
    ACTIVATE = auto()
    RETIRE = auto()


@dataclass(frozen=True, slots=True)
class Step:
    """What comes next, and when it is due. `key_id` is empty for a key that is to be added."""

    action: Action
    key_id: str
    due: datetime


def settle_seconds(store: KeyStore) -> float:
    """After how long every process knows of a change."""
    return _REFRESHES * store.refresh_seconds


def next_step(keys: KeySet, *, now: datetime, rotate: bool, settle: float, grace: float) -> Step | None:
    """What comes next; None when nothing is left to do. `rotate` begins a rotation, unless one is in progress."""
    usable = keys.usable
    place = next((number for number, key in enumerate(usable) if key.id == keys.active), -1)
    if place + 1 < len(usable):
        newest = usable[-1]
        return Step(Action.ACTIVATE, newest.id, newest.created_at + timedelta(seconds=settle))
    if place > 0:
        signing = usable[place]
        since = signing.created_at if signing.activated_at is None else signing.activated_at
        return Step(Action.RETIRE, usable[0].id, since + timedelta(seconds=settle + grace))
    return Step(Action.ADD, "", now) if rotate else None


async def carry_on(
    store: KeyStore, clock: Clock, *, rotate: bool, settle: float | None = None, grace: float = GRACE_SECONDS
) -> Step | None:
    """Do all that is due, and return what comes next. Raises what the store raises."""
    settle = settle_seconds(store) if settle is None else settle
    while True:
        keys = await store.read()
        step = next_step(keys, now=clock.now(), rotate=rotate, settle=settle, grace=grace)
        if step is None or step.due > clock.now():
            return step
        if step.action is Action.ADD:
            rotate = False
            key_id = await store.add()
            _log.info("signing key %s is added: it verifies", key_id)
        elif step.action is Action.ACTIVATE:
            await store.activate(step.key_id, now=clock.now())
            _log.info("signing key %s signs", step.key_id)
        else:
            await store.retire(step.key_id)
            _log.info("signing key %s is retired", step.key_id)


def refuse_young(key: Key, *, now: datetime, settle: float) -> None:
    """Raise Conflict for a key that some processes may not know yet: what it signed they would drop."""
    wait = (key.created_at + timedelta(seconds=settle) - now).total_seconds()
    if wait > 0:
        raise Conflict(
            f"signing key {key.id} is too young: some processes may not have it for another {ceil(wait)} s, and would drop what it "
            "signs; wait, or say --force"
        )
