"""What a running step writes, on its way to whoever watches: never faster than five times a second, and the last text for sure."""

import asyncio
from itertools import pairwise
from typing import Any

import orjson
import pytest

from shared.ai import Reply, Request
from shared.clock import ManualClock
from shared.errors import StoreUnavailable
from shared.guards import Cache, open_guards
from shared.messages import StepCompleted, StepFailed, Usage
from shared.runtime.progress import Progress
from tests.support.desk import Desk, raising
from tests.support.doubles import WORKFLOW


class SlowCache:
    """A cache that remembers what is put when, and that can be stopped in the middle of a put."""

    def __init__(self, clock: ManualClock) -> None:
        self.put_at: list[tuple[float, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self._clock = clock
        self._inner: Cache = open_guards("memory", clock).cache

    async def get(self, key: str) -> bytes | None:
        return await self._inner.get(key)

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.put_at.append((self._clock.monotonic(), orjson.loads(value)))
        await self._inner.put(key, value, ttl_seconds=ttl_seconds)

    @property
    def texts(self) -> list[str | None]:
        return [value.get("text") for _, value in self.put_at]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cache(clock: ManualClock) -> SlowCache:
    return SlowCache(clock)


@pytest.fixture
def progress(cache: SlowCache, clock: ManualClock) -> Progress:
    return Progress(cache, clock)


async def test_of_many_texts_five_a_second_are_written_and_the_last_one(
    progress: Progress, cache: SlowCache, clock: ManualClock
) -> None:
    writer = progress.writer(WORKFLOW, "draft", 2)
    for number in range(101):
        writer.say("x" * number)
        await clock.advance(0.01)
    await clock.advance(1)
    moments = [at for at, _ in cache.put_at]
    assert all(later - earlier >= 0.2 - 1e-9 for earlier, later in pairwise(moments))
    assert len(moments) == 7
    assert cache.put_at[-1][1] == {"step": "draft", "attempt": 2, "text": "x" * 100, "length": 100}
    found = await progress.read(WORKFLOW, "draft", 2)
    assert found is not None
    assert orjson.loads(found) == cache.put_at[-1][1]
    assert await progress.read(WORKFLOW, "draft", 1) is None


async def test_a_text_that_stays_the_same_is_not_written_again(progress: Progress, cache: SlowCache, clock: ManualClock) -> None:
    progress.writer(WORKFLOW, "draft", 1).say("text")
    await clock.advance(5)
    assert cache.texts == ["text"]


async def test_a_store_that_stands_still_delays_nobody_and_gets_the_newest_text_later(
    progress: Progress, cache: SlowCache, clock: ManualClock
) -> None:
    writer = progress.writer(WORKFLOW, "draft", 1)
    cache.gate.clear()
    for text in ("a", "ab", "abc"):
        writer.say(text)
        await clock.advance(1)
    assert cache.texts == []
    cache.gate.set()
    await clock.advance(1)
    assert cache.texts[-1] == "abc"
    assert len(cache.texts) == 2


async def test_an_attempt_that_ended_shows_nothing_any_more(progress: Progress, cache: SlowCache, clock: ManualClock) -> None:
    writer = progress.writer(WORKFLOW, "draft", 1)
    writer.say("text")
    await clock.advance(0.05)
    writer.end()
    await clock.advance(0.2)
    assert cache.texts == ["text", None]
    assert await progress.read(WORKFLOW, "draft", 1) is None
    silent = progress.writer(WORKFLOW, "silent", 1)
    silent.end()
    await clock.advance(1)
    assert len(cache.put_at) == 2


async def test_what_is_written_is_forgotten_after_a_minute(progress: Progress, clock: ManualClock) -> None:
    progress.writer(WORKFLOW, "draft", 1).say("text")
    await clock.advance(59)
    assert await progress.read(WORKFLOW, "draft", 1) is not None
    await clock.advance(1)
    assert await progress.read(WORKFLOW, "draft", 1) is None


@pytest.mark.parametrize("text", ["ü" * 10_000, "\ud800" * 5000, "data: x\n\nevent: end\n\n" * 300])
async def test_any_text_travels_as_one_line_of_its_last_characters(progress: Progress, clock: ManualClock, text: str) -> None:
    progress.writer(WORKFLOW, "draft", 1).say(text)
    await clock.advance(0.1)
    found = await progress.read(WORKFLOW, "draft", 1)
    assert found is not None
    assert b"\n" not in found
    shown = orjson.loads(found)
    assert (shown["length"], shown["text"]) == (len(text), text[-4000:].replace("\ud800", "?"))


async def test_a_store_that_fails_costs_the_step_nothing(
    progress: Progress, cache: SlowCache, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    writer = progress.writer(WORKFLOW, "draft", 1)
    cache.error = StoreUnavailable("gone")
    writer.say("text")
    await clock.advance(1)
    assert "cannot be shown" in caplog.text
    cache.error = None
    writer.say("text and more")
    await clock.advance(1)
    assert cache.texts == ["text and more"]


class Streaming:
    """A model that says whether it was asked to stream, and does."""

    def __init__(self) -> None:
        self.streamed: list[bool] = []

    async def generate(self, request: Request) -> Reply:
        self.streamed.append(request.on_text is not None)
        if request.on_text is not None:
            request.on_text("half of the text")
            await asyncio.sleep(0)
            request.on_text("the whole of the text")
            for _ in range(5):
                await asyncio.sleep(0)
        return Reply("the whole of the text", "scripted", Usage(model_calls=1))


async def test_an_answer_is_streamed_while_somebody_watches_the_workflow() -> None:
    model = Streaming()
    desk = Desk(model=model)
    await desk.reply(StepCompleted)
    await desk.progress.watch(WORKFLOW)
    await desk.stage.clock.advance(29)
    await desk.reply(StepCompleted, attempt=2)
    assert await desk.progress.read(WORKFLOW, "draft", 2) is not None
    await desk.stage.clock.advance(1)
    assert await desk.progress.read(WORKFLOW, "draft", 2) is None  # it has ended
    await desk.reply(StepCompleted, attempt=3)
    assert model.streamed == [False, True, False]


async def test_a_failed_attempt_shows_nothing_any_more_either() -> None:
    class Failing(Streaming):
        async def generate(self, request: Request) -> Reply:
            await super().generate(request)
            raise StoreUnavailable("gone")

    desk = Desk(model=Failing())
    await desk.progress.watch(WORKFLOW)
    await desk.reply(StepFailed)
    await desk.stage.clock.advance(1)
    assert await desk.progress.read(WORKFLOW, "draft", 1) is None
    await Desk(raising(StoreUnavailable("gone"))).reply(StepFailed)
