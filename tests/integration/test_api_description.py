"""The API's description, and the page that is made of it: whole, true, and up to date."""

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from pydantic import BaseModel, TypeAdapter

from functions.gateway import control_models, dead_letter_models, documents, models, request_models, schedules, signals
from functions.gateway.api import create_app
from functions.gateway.reference import example_of, page, reference
from shared.messages import Usage
from shared.runtime import Runtime
from shared.workflows.definitions import InputField
from tests.integration.test_gateway import client_of, settings
from tests.support.library import AGENTS, WORKFLOWS

ROOT = Path(__file__).parents[2]
PLACES = (models, request_models, control_models, dead_letter_models, documents, schedules, signals)


@pytest.fixture
def document() -> dict[str, Any]:
    return create_app(Runtime(settings())).openapi()


def operations(document: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_status_that_can_come_is_described_and_errors_are_problems(document: dict[str, Any]) -> None:
    found = operations(document)
    assert {name: " ".join(sorted(operation["responses"])) for name, operation in found.items()} == {
        "POST /v1/workflows": "202 400 401 403 413 415 422 429 500 503",
        "GET /v1/workflows": "200 401 403 422 429 500 503",
        "GET /v1/workflows/{id}": "200 401 403 404 429 500 503",
        "GET /v1/workflows/{id}/output": "200 401 403 404 429 500 503",
        "GET /v1/workflows/{id}/steps/{step}/output": "200 401 403 404 422 429 500 503",
        "GET /v1/workflows/{id}/history": "200 401 403 404 422 429 500 503",
        "GET /v1/workflows/{id}/snapshots/{seq}": "200 401 403 404 422 429 500 503",
        "POST /v1/workflows/{id}/cancel": "202 400 401 403 404 413 415 422 429 500 503",
        "POST /v1/workflows/{id}/fork": "202 400 401 403 404 413 415 422 429 500 503",
        "POST /v1/workflows/{id}/rerun": "202 400 401 403 404 409 413 415 422 429 500 503",
        "POST /v1/workflows/{id}/pause": "202 400 401 403 404 409 413 415 422 429 500 503",
        "POST /v1/workflows/{id}/resume": "202 400 401 403 404 409 413 415 422 429 500 503",
        "POST /v1/workflows/{id}/signals/{name}": "202 400 401 403 404 409 413 415 422 429 500 503",
        "GET /v1/workflows/{id}/events": "200 400 401 403 404 422 429 500 503",
        "POST /v1/agents/{name}/tasks": "202 400 401 403 404 413 415 422 429 500 503",
        "GET /v1/dead-letters": "200 401 403 422 429 500 503",
        "GET /v1/dead-letters/{id}": "200 401 403 404 422 429 500 503",
        "POST /v1/dead-letters/redrive": "200 400 401 403 413 415 422 429 500 503",
        "GET /v1/documents": "200 401 403 429 500 503",
        "GET /v1/documents/search": "200 401 403 422 429 500 503",
        "PUT /v1/documents/{name}": "200 400 401 403 404 413 415 422 429 500 503",
        "DELETE /v1/documents/{name}": "204 401 403 404 422 429 500 503",
        "GET /v1/schedules": "200 401 403 429 500 503",
        "GET /health": "200 500 503",
        "GET /health/ready": "200 500 503",
        "GET /metrics": "200 401 403 429 500 503",
    }
    unready = found["GET /health/ready"]["responses"].pop("503")
    assert unready["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/Ready"}}}
    for operation in found.values():
        assert operation["description"]
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
                assert response["content"] == {"application/problem+json": problem}


def test_every_parameter_and_every_field_is_described_and_has_an_example(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), (name, parameter["name"])
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name
        for field, one in schema["properties"].items():
            assert "$ref" in one or one.get("description"), (name, field)
            told = {"examples", "enum", "const", "default"} & one.keys()
            nested = "'$ref'" in str(one)  # the schema that it refers to has its own
            assert told or nested, (name, field)


def test_an_example_made_of_the_fields_examples_is_what_the_model_takes(document: dict[str, Any]) -> None:
    for name in document["components"]["schemas"]:
        places = [vars(place) for place in PLACES] + [{"Usage": Usage}]
        (model,) = {place[name] for place in places if name in place}
        assert issubclass(model, BaseModel)
        if name != "RedriveRequest":  # its fields exclude each other
            TypeAdapter(model).validate_json(httpx.Request("POST", "http://x", json=example_of(document, name)).content)


def test_the_workflows_and_agents_that_there_are_are_named(document: dict[str, Any]) -> None:
    request = document["components"]["schemas"]["SubmitRequest"]
    assert request["properties"]["workflow"]["enum"] == WORKFLOWS
    required = [one["properties"]["input"]["required"] for one in request["anyOf"]]
    assert required[WORKFLOWS.index("report")] == ["brief"]
    name = operations(document)["POST /v1/agents/{name}/tasks"]["parameters"][0]
    assert name["schema"]["enum"] == AGENTS


def test_whole_numbers_are_described_as_far_as_they_are_read_as_such(document: dict[str, Any]) -> None:
    [debate] = [one for one in document["components"]["schemas"]["SubmitRequest"]["anyOf"] if one["title"] == "debate"]
    rounds = debate["properties"]["input"]["properties"]["rounds"]
    field = InputField(type="integer")

    assert [field.takes(orjson.loads(str(rounds[bound]))) for bound in ("minimum", "maximum")] == [True, True]
    beyond = (rounds["minimum"] - 1, rounds["maximum"] + 1)
    assert [field.takes(orjson.loads(str(number))) for number in beyond] == [False, False]


async def test_the_document_is_the_same_every_time() -> None:
    async with client_of(create_app(Runtime(settings()))) as client:
        first, second = [(await client.get("/openapi.json")).content for _ in range(2)]
    assert first == second


def test_the_page_tells_of_every_call_and_is_up_to_date(document: dict[str, Any]) -> None:
    kept = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert kept == page(), "docs/api.md is out of date; say make docs"
    for name in operations(document):
        assert f"## `{name}`\n" in kept
    assert reference(document) == kept
