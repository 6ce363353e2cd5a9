"""The simulated Gemini through Google's own client, and over bare HTTP where that client would never say such things."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx
import pytest
from google.genai import errors, types
from pydantic import BaseModel

from shared.ai.schema import check
from shared.clock import ManualClock
from shared.local.simulator import Simulator, SimulatorSettings, open_simulator
from tests.support.live import until
from tests.support.simulated import BRIEF, NEWER, PRO, google, settings

ASK: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": BRIEF}]}]}
KEY = {"x-goog-api-key": "AIza-some-key"}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with open_simulator(SimulatorSettings(keys=frozenset({"AIza-some-key"}))) as opened:
        yield opened


@pytest.fixture
async def models(simulator: Simulator) -> AsyncIterator[Any]:
    async with google(simulator.url) as opened:
        yield opened


@pytest.fixture
async def http(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=simulator.url, headers=KEY, trust_env=False) as client:
        yield client


async def test_a_text_is_answered_from_itself_and_says_who_wrote_it(models: Any) -> None:
    answer = await models.generate_content(model=PRO, contents=BRIEF)

    assert answer.text.startswith("The ferry was late on Monday.")
    assert "simulated Gemini" in answer.text
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    assert answer.candidates[0].content.role == "model"
    assert answer.model_version == PRO
    assert answer.response_id


async def test_the_same_question_has_the_same_answer(models: Any) -> None:
    first, second = [await models.generate_content(model=PRO, contents=BRIEF) for _ in range(2)]

    assert first.text == second.text
    assert first.response_id != second.response_id


async def test_a_stream_says_what_one_answer_says(models: Any, simulator: Simulator) -> None:
    whole = await models.generate_content(model=PRO, contents=BRIEF)
    chunks = [chunk async for chunk in await models.generate_content_stream(model=PRO, contents=BRIEF)]

    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.candidates[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP
    counts = [chunk.usage_metadata.candidates_token_count for chunk in chunks]
    assert counts == sorted(counts)
    assert chunks[-1].usage_metadata == whole.usage_metadata
    assert simulator.ledger[PRO].answered == 2


async def test_a_stream_that_is_not_asked_for_as_events_is_an_array(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"/v1beta/models/{PRO}:streamGenerateContent", json=ASK)

    assert answer.headers["content-type"].startswith("application/json")
    assert "".join(chunk["candidates"][0]["content"]["parts"][0]["text"] for chunk in answer.json()).startswith("The ferry")


async def test_usage_is_counted_over_all_that_is_sent(simulator: Simulator) -> None:
    thinking = SimulatorSettings(thinking_tokens=7, cached_share=0.5)
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    async with open_simulator(thinking) as other, google(other.url) as models:
        short = await models.generate_content(model=PRO, contents="x" * 400)
        long = await models.generate_content(
            model=PRO,
            contents="x" * 400,
            config=settings(system_instruction="y" * 400, response_mime_type="application/json", response_json_schema=schema),
        )
        entry = other.ledger[PRO]

    used = short.usage_metadata
    assert used.prompt_token_count == 101  # with the role
    assert used.cached_content_token_count == 50
    assert used.thoughts_token_count == 7
    assert used.tool_use_prompt_token_count is None
    assert used.candidates_token_count == -(-len(short.text.encode()) // 4)
    assert used.total_token_count == 101 + 7 + used.candidates_token_count
    assert long.usage_metadata.prompt_token_count > 200
    assert entry.input_tokens == used.prompt_token_count + long.usage_metadata.prompt_token_count
    assert entry.output_tokens == used.candidates_token_count + long.usage_metadata.candidates_token_count
    assert (entry.thinking_tokens, entry.cached_tokens) == (14, 50 + long.usage_metadata.cached_content_token_count)


async def test_counting_gives_what_the_call_then_says(models: Any, http: httpx.AsyncClient, simulator: Simulator) -> None:
    counted = await models.count_tokens(model=PRO, contents=BRIEF)
    answered = await models.generate_content(model=PRO, contents=BRIEF)
    whole = {**ASK, "systemInstruction": {"parts": [{"text": "z" * 400}]}, "model": f"models/{PRO}"}
    with_all = await http.post(f"/v1/models/{PRO}:countTokens", json={"generateContentRequest": whole})

    assert counted.total_tokens == answered.usage_metadata.prompt_token_count
    assert with_all.json()["totalTokens"] == counted.total_tokens + 100
    assert (simulator.ledger[PRO].counted, simulator.ledger[PRO].calls) == (2, 1)


async def test_the_answer_ends_where_the_output_tokens_end(models: Any) -> None:
    answer = await models.generate_content(model=PRO, contents=BRIEF, config=settings(max_output_tokens=3))

    assert answer.text == "The ferry wa"
    assert answer.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert answer.usage_metadata.candidates_token_count == 3


async def test_thinking_alone_can_use_up_the_output() -> None:
    async with open_simulator(SimulatorSettings(thinking_tokens=50)) as simulator, google(simulator.url) as models:
        answer = await models.generate_content(model=PRO, contents=BRIEF, config=settings(max_output_tokens=20))

    assert answer.text is None
    assert answer.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert answer.usage_metadata.thoughts_token_count == 20
    assert answer.usage_metadata.candidates_token_count is None


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["title", "questions", "score", "count", "mood", "done", "who"],
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 12},
        "questions": {"type": "array", "minItems": 3, "maxItems": 4, "items": {"type": "string"}},
        "score": {"type": "number", "minimum": 2, "maximum": 3},
        "count": {"type": "integer", "minimum": 10, "maximum": 20},
        "mood": {"enum": ["calm", "late"]},
        "done": {"type": "boolean"},
        "who": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {"claim": {"type": "string"}}}},
    },
}


async def test_an_answer_fits_its_schema_and_comes_from_the_prompt(models: Any) -> None:
    config = settings(response_mime_type="application/json", response_json_schema=SCHEMA)
    answer = await models.generate_content(model=PRO, contents=BRIEF, config=config)

    output = json.loads(answer.text)
    check(output, SCHEMA)
    assert output["who"][0]["claim"] in BRIEF
    assert output["mood"] == "late"


async def test_long_texts_stay_short_where_a_schema_cannot_say_so(models: Any) -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}, "sections": SCHEMA["properties"]["questions"]}}
    config = settings(response_mime_type="application/json", response_json_schema=schema)
    answer = await models.generate_content(model=PRO, contents=f"# {'A very long heading ' * 30}\n\n{BRIEF}", config=config)

    output = json.loads(answer.text)
    assert 0 < len(output["title"]) <= 100
    assert all(len(heading) <= 100 for heading in output["sections"])


class Mood(BaseModel):
    name: Literal["calm", "late"]


class Report(BaseModel):
    title: str
    moods: list[Mood]
    pages: int | None = None


@pytest.mark.parametrize("older", [True, False])
async def test_schemas_with_references_and_alternatives_are_filled(models: Any, older: bool) -> None:
    given: dict[str, Any] = {"response_schema": Report} if older else {"response_json_schema": Report.model_json_schema()}
    config = settings(response_mime_type="application/json", **given)
    answer = await models.generate_content(model=PRO, contents=BRIEF, config=config)

    assert Report.model_validate_json(answer.text).moods[0].name == "late"


async def test_a_wrong_key_is_refused_as_google_does(simulator: Simulator) -> None:
    async with google(simulator.url, key="AIza-another") as models:
        with pytest.raises(errors.ClientError) as refused:
            await models.generate_content(model=PRO, contents=BRIEF)

    assert (refused.value.code, refused.value.status) == (400, "INVALID_ARGUMENT")
    assert refused.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    assert simulator.ledger.refused == {400: 1}
    assert simulator.ledger.calls == 0


async def test_without_a_key_there_is_no_permission(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"/v1/models/{PRO}:generateContent", json=ASK, headers={"x-goog-api-key": ""})

    assert answer.status_code == 403
    assert answer.json()["error"]["status"] == "PERMISSION_DENIED"


@pytest.mark.parametrize("model", ["gemini-1.5-pro", "gemini-9"])
async def test_a_model_that_is_not_served_is_not_found(models: Any, model: str) -> None:
    with pytest.raises(errors.ClientError) as refused:
        await models.generate_content(model=model, contents=BRIEF)

    assert (refused.value.code, refused.value.status) == (404, "NOT_FOUND")


@pytest.mark.parametrize("path", ["/", f"/v1/models/{PRO}:embedContent", f"/v2/models/{PRO}:generateContent", "/_simulator/other"])
async def test_other_paths_are_not_found(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json=ASK)

    assert answer.status_code == 404


TOOL = {"functionDeclarations": [{"name": "look_up", "parameters": {"type": "OBJECT"}}]}
JSON: dict[str, Any] = {"responseMimeType": "application/json"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Invalid JSON"),
        (b"[]", "not an object"),
        ({}, "contents is not specified"),
        ({"contents": []}, "contents is not specified"),
        ({"contents": "x"}, "Invalid value at 'contents'"),
        ({"contents": [{"parts": []}]}, "parts must not be empty"),
        ({"contents": [{"parts": [{"text": 3}]}]}, "TYPE_STRING"),
        ({"contents": [{"role": "system", "parts": [{"text": "x"}]}]}, "valid role: user, model"),
        ({**ASK, "prompt": "x"}, 'Unknown name "prompt"'),
        ({**ASK, "generationConfig": []}, "generation_config"),
        ({**ASK, "generationConfig": {"temperature": "hot"}}, "TYPE_FLOAT"),
        ({**ASK, "generationConfig": {"temperature": 3}}, "temperature must be in the range"),
        ({**ASK, "generationConfig": {"maxOutputTokens": 1.5}}, "TYPE_INT32"),
        ({**ASK, "generationConfig": {"max_output_tokens": 0}}, "max_output_tokens must be in the range"),
        ({**ASK, "generationConfig": {"responseMimeType": "text/xml"}}, "allowed mimetypes"),
        ({**ASK, "generationConfig": {"responseJsonSchema": {}}}, "mime type: 'text/plain' is unsupported"),
        ({**ASK, "generationConfig": {**JSON, "responseJsonSchema": {}, "responseSchema": {}}}, "Only one of"),
        ({**ASK, "generationConfig": JSON, "tools": [TOOL]}, "Function calling with a response mime type"),
        ({**ASK, "tools": [{"functionDeclarations": [{"name": "1 x"}]}]}, "Invalid function name"),
    ],
)
async def test_a_body_that_is_wrong_is_refused_and_costs_nothing(
    http: httpx.AsyncClient, simulator: Simulator, body: Any, said: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await http.post(f"/v1/models/{PRO}:generateContent", content=content)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert said in error["message"]
    assert simulator.ledger.calls == 0


async def test_newer_models_take_functions_and_a_schema_together(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"/v1/models/{NEWER}:generateContent", json={**ASK, "generationConfig": JSON, "tools": [TOOL]})

    assert answer.status_code == 200


async def test_an_answer_takes_the_time_that_its_tokens_take() -> None:
    clock = ManualClock()
    slow = SimulatorSettings(base_seconds=2, seconds_per_token=0.5, thinking_tokens=4)
    async with open_simulator(slow, clock=clock) as simulator, google(simulator.url) as models:
        asking = asyncio.create_task(models.generate_content(model=PRO, contents=BRIEF, config=settings(max_output_tokens=10)))
        await until(lambda: clock.sleepers > 0)
        in_flight = simulator.ledger[PRO].in_flight
        await clock.advance(2 + 10 * 0.5 - 0.1)
        early = simulator.ledger[PRO].answered
        await clock.advance(0.1)
        await asking

        assert (in_flight, early, simulator.ledger[PRO].answered) == (1, 0, 1)
