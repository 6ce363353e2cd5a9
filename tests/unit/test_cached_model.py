"""A model whose replies are kept for an hour."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from shared.ai import Declaration, Reply, Request, ToolCall, Turn
from shared.ai.cached import CachedModel
from shared.clock import ManualClock
from shared.errors import ModelUnavailable, OutputInvalid, StoreUnavailable
from shared.guards import Cache, Guards, open_guards
from shared.guards.fallback import with_fallbacks
from shared.messages import Usage
from shared.telemetry import metrics
from tests.support.doubles import Purse, ScriptedModel

TOOL = Declaration("look_up", "Looks up.", {"type": "object", "properties": {"word": {"type": "string"}}})
CALL = ToolCall("look_up", {"word": "a"}, id="c1", signature=b"\x00\xff")
TURN = Turn("m", (CALL,), ({"found": 1},))
REQUEST = Request(
    prompt="Say.",
    schema={"type": "object", "properties": {"a": {"type": "string"}}},
    prompt_version="v1",
    tools=(TOOL,),
    turns=(TURN,),
)
USED = Usage(model_calls=1, input_tokens=10, output_tokens=5, cost_microdollars=7)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cache(clock: ManualClock) -> Cache:
    return open_guards("memory", clock).cache


def cached(inner: Any, cache: Cache, *models: str) -> CachedModel:
    return CachedModel(inner, cache, models=models or ("m1", "m2"))


async def test_the_same_request_is_answered_for_nothing_for_an_hour(clock: ManualClock, cache: Cache) -> None:
    inner = ScriptedModel({"title": "a"}, usage=USED)
    first = await cached(inner, cache).generate(REQUEST)
    before = metrics.value("ai.cache.hit")
    await clock.advance(3599)
    purse = Purse(tokens=0)
    hit = await cached(inner, cache).generate(replace(REQUEST, account=purse, timeout_seconds=1, material={"else": 1}))

    assert (first.output, first.usage) == ({"title": "a"}, USED)
    assert (hit.output, hit.model, hit.usage, hit.problem) == (first.output, "scripted", Usage(), None)
    assert (len(inner.requests), purse.held, purse.settled) == (1, [], [])
    assert metrics.value("ai.cache.hit") == before + 1

    await clock.advance(1)
    await cached(inner, cache).generate(REQUEST)
    assert len(inner.requests) == 2
    assert metrics.value("ai.cache.hit") == before + 1


@pytest.mark.parametrize(
    "change",
    [
        {"tier": "fast"},
        {"prompt_version": "v2"},
        {"prompt": "Say!"},
        {"schema": None},
        {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
        {"temperature": 0.3},
        {"max_tokens": 4095},
        {"tools": ()},
        {"tools": (replace(TOOL, name="find"),)},
        {"tools": (replace(TOOL, description="Finds."),)},
        {"tools": (replace(TOOL, parameters={"type": "object"}),)},
        {"turns": ()},
        {"turns": (TURN, TURN)},
        {"turns": (replace(TURN, model="n"),)},
        {"turns": (replace(TURN, results=({"found": 2},)),)},
        {"turns": (replace(TURN, calls=(replace(CALL, arguments={"word": "b"}),)),)},
        {"turns": (replace(TURN, calls=(replace(CALL, signature=b"\x01"),)),)},
    ],
    ids=str,
)
async def test_whatever_determines_the_answer_makes_it_another_request(cache: Cache, change: dict[str, Any]) -> None:
    inner = ScriptedModel("first", "second")
    await cached(inner, cache).generate(REQUEST)
    assert (await cached(inner, cache).generate(replace(REQUEST, **change))).output == "second"
    assert (await cached(inner, cache).generate(REQUEST)).output == "first"


@pytest.mark.parametrize("models", [("m1",), ("m2", "m1"), ("m1", "m2", "m3")])
async def test_another_chain_has_other_answers(cache: Cache, models: tuple[str, ...]) -> None:
    inner = ScriptedModel("first", "second")
    await cached(inner, cache, "m1", "m2").generate(REQUEST)
    assert (await cached(inner, cache, *models).generate(REQUEST)).output == "second"


async def test_what_differs_only_in_the_order_of_its_fields_is_the_same(cache: Cache) -> None:
    inner = ScriptedModel("first", "second")
    await cached(inner, cache).generate(replace(REQUEST, schema={"type": "object", "required": []}))
    reply = await cached(inner, cache).generate(replace(REQUEST, schema={"required": [], "type": "object"}))
    assert reply.output == "first"


async def test_calls_of_tools_come_back_as_they_were(cache: Cache) -> None:
    calls = (CALL, ToolCall("look_up", {"word": "b"}))
    inner = ScriptedModel(Reply(output="", model="m1", usage=USED, calls=calls))
    await cached(inner, cache).generate(REQUEST)
    assert (await cached(inner, cache).generate(REQUEST)).calls == calls
    assert len(inner.requests) == 1


@pytest.mark.parametrize("output", ["x" * 262_144, {"text": "x" * 300_000}])
async def test_a_large_reply_is_not_kept(cache: Cache, output: Any) -> None:
    inner = ScriptedModel(output)
    for _ in range(2):
        assert (await cached(inner, cache).generate(REQUEST)).output == output
    assert len(inner.requests) == 2


async def test_a_reply_just_small_enough_is_kept(cache: Cache) -> None:
    inner = ScriptedModel("x" * 262_000)
    for _ in range(2):
        await cached(inner, cache).generate(REQUEST)
    assert len(inner.requests) == 1


@pytest.mark.parametrize("error", [ModelUnavailable("gone"), OutputInvalid("no JSON"), asyncio.CancelledError()])
async def test_errors_are_not_kept(cache: Cache, error: BaseException) -> None:
    inner = ScriptedModel(error, "answer")
    with pytest.raises(type(error)):
        await cached(inner, cache).generate(REQUEST)
    assert (await cached(inner, cache).generate(REQUEST)).output == "answer"


async def test_a_reply_with_a_problem_is_not_kept(cache: Cache) -> None:
    inner = ScriptedModel(Reply(output="", model="m1", usage=USED, problem=OutputInvalid("of no use")), "answer")
    await cached(inner, cache).generate(REQUEST)
    assert (await cached(inner, cache).generate(REQUEST)).output == "answer"


class Forger:
    """A cache that answers with what the test put there, whatever the key."""

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.put_values: list[bytes] = []

    async def get(self, key: str) -> bytes | None:
        return self.value

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        self.put_values.append(value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"output": "a"}',
        b'{"output": "a", "model": "m", "calls": 1}',
        b'{"output": "a", "model": "m", "calls": [{"name": "x"}]}',
        b'{"output": "a", "model": "m", "calls": [{"name": "x", "arguments": {}, "id": null, "signature": "?"}]}',
    ],
)
async def test_a_value_that_cannot_be_read_is_a_miss_and_is_replaced(value: bytes) -> None:
    forger = Forger(value)
    inner = ScriptedModel("answer")
    assert (await cached(inner, forger).generate(REQUEST)).output == "answer"
    assert len(forger.put_values) == 1


class Down:
    """A cache whose store is away."""

    async def get(self, key: str) -> bytes | None:
        raise StoreUnavailable("away")

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        raise StoreUnavailable("away")


async def test_without_its_store_every_request_is_asked(clock: ManualClock) -> None:
    memory = open_guards("memory", clock)
    down = Guards(memory.idempotency, memory.limiter, memory.breaker, Down())
    inner = ScriptedModel("answer")
    model = cached(inner, with_fallbacks(down, clock, instances=1).cache)
    for _ in range(2):
        assert (await model.generate(REQUEST)).output == "answer"
    assert len(inner.requests) == 2
