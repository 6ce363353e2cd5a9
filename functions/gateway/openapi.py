"""The API's description as it is sent: what FastAPI works out from the routes, made exact.

Problems stand under their own content type, what FastAPI would send by itself is left out, and what only this platform knows is put
in: its workflows with the input of each, and its agents.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from shared.runtime import Runtime
from shared.workflows import Definition, InputField
from shared.workflows.definitions import LARGEST_INTEGER, LEAST_INTEGER

Json = dict[str, Any]

_NEVER_SENT = {"$ref": "#/components/schemas/HTTPValidationError"}
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_HEADERS = {
    "202": {
        "Location": {
            "description": "The workflow.",
            "required": True,
            "schema": {"type": "string", "pattern": "^/v1/workflows/wf_"},
        }
    },
    "503": {
        "Retry-After": {"description": "Seconds, where trying again may help.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
    },
}


def describe(app: FastAPI, live: Runtime) -> None:
    """Make `app` describe itself exactly. The document is made when it is first asked for."""
    describe_routes = app.openapi
    finished: list[Json] = []

    def described() -> Json:
        if not finished:
            document = describe_routes()
            for operation in _operations(document):
                _correct(operation["responses"])
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _sendable(parameter["schema"])
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            _name_workflows(schemas["SubmitRequest"], live)
            _name_agents(document, live)
            finished.append(document)
        return finished[0]

    app.openapi = described  # type: ignore[method-assign]  # https://fastapi.tiangolo.com/how-to/extending-openapi/


def _operations(document: Json) -> Iterator[Json]:
    for path in document["paths"].values():
        yield from path.values()


def _correct(answers: Json) -> None:
    for status in list(answers):
        if status in _HEADERS:
            answers[status]["headers"] = _HEADERS[status]
        if int(status) < 400:
            continue
        (shape,) = answers[status]["content"].values()
        if shape["schema"] == _NEVER_SENT:
            del answers[status]
        elif shape["schema"] == _PROBLEM:
            answers[status]["content"] = {"application/problem+json": shape}


def _sendable(schema: Json) -> Json:
    """What is left out of a URL or a header is not null there."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**kinds[0], **{key: value for key, value in schema.items() if key != "anyOf"}}


def _name_workflows(request: Json, live: Runtime) -> None:
    definitions = live.definitions
    request["properties"]["workflow"]["enum"] = sorted(definitions)
    request["anyOf"] = [_request_for(definitions[name]) for name in sorted(definitions)]


def _request_for(definition: Definition) -> Json:
    required = [name for name, field in definition.input.items() if field.required]
    fields: Json = {
        "type": "object",
        "properties": {name: _field(field) for name, field in definition.input.items()},
        "required": required,
        "additionalProperties": False,
    }
    return {
        "title": definition.name,
        "description": definition.description,
        "properties": {"workflow": {"const": definition.name}, "input": fields},
        "required": ["workflow", *(["input"] if required else [])],
    }


def _field(field: InputField) -> Json:
    schema: Json = {"type": field.type if field.required else [field.type, "null"]}
    if field.type == "string":
        schema["pattern"] = r"^[^\x00]*$"
    if field.type == "integer":
        schema |= {"minimum": LEAST_INTEGER, "maximum": LARGEST_INTEGER}
    if field.description:
        schema["description"] = field.description
    if field.default is not None:
        schema["default"] = field.default
    return schema


def _name_agents(document: Json, live: Runtime) -> None:
    (name, *_) = document["paths"]["/v1/agents/{name}/tasks"]["post"]["parameters"]
    name["schema"]["enum"] = [agent for agent, spec in live.functions.items() if spec.is_agent]
