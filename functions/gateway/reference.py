"""The API's description as a page for people: `python -m functions.gateway.reference > docs/api.md`."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from functions.gateway.api import create_app
from shared.config import Settings
from shared.runtime import Runtime

_ANYWHERE = ("500", "503")
_UNTOLD = "Successful Response"
"""What FastAPI says where nobody did."""
_URL = "http://127.0.0.1:8080"
_HEAD = f"""\
# The HTTP API

Made from `/openapi.json` by `make docs`; do not edit. `agent-team serve` answers on `{_URL}`. `/docs` is the same to try out.

Bodies and answers are JSON unless it says otherwise; moments are RFC 3339, with an offset. An error is a problem document
([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457), `application/problem+json`):

```json
%s
```

Every call can also answer 500 (something broke; the log says what) and 503 (not now; `Retry-After` says when). A path that is not
there is 404, a method that a path does not take 405.
"""

Json = dict[str, Any]


def reference(document: Json) -> str:
    """The page for an OpenAPI document."""
    schemas = document["components"]["schemas"]
    parts = [_HEAD % json.dumps(example_of(document, "Problem"), indent=2), _contents(document)]
    for path, method, operation in _operations(document):
        parts.append("\n\n".join(_operation(path, method, operation, schemas)))
    parts.append("\n\n".join(_models(schemas)))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def example_of(document: Json, name: str) -> Any:
    """A value that the schema of this name describes, made of the examples in it."""
    return _example({"$ref": f"#/components/schemas/{name}"}, document["components"]["schemas"])


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _contents(document: Json) -> str:
    rows = ["| call | what it does |", "|---|---|"]
    for path, method, operation in _operations(document):
        rows.append(f"| [`{method} {path}`](#{_anchor(f'{method} {path}')}) | {_sentence(operation['description'])} |")
    return "\n".join(rows)


def _operation(path: str, method: str, operation: Json, schemas: Json) -> Iterator[str]:
    yield f"## `{method} {path}`"
    yield operation["description"]
    if operation.get("parameters"):
        yield _table(
            ("parameter", "in", "type", "meaning"),
            [
                (f"`{one['name']}`", one["in"], _type(one["schema"]), _meaning(one, one["schema"]))
                for one in operation["parameters"]
            ],
        )
    body = operation.get("requestBody")
    if body is not None:
        ((kind, shape),) = body["content"].items()
        yield f"Body: {_named(kind, shape)}{'' if body.get('required') else ', or none'}."
    yield _table(("answer", "what", "meaning"), list(_answers(operation["responses"], schemas)))
    yield f"```sh\n{_curl(path, method, operation, schemas)}\n```"
    shown = _shown(operation["responses"], schemas)
    if shown is not None:
        yield shown


def _answers(answers: Json, schemas: Json) -> Iterator[tuple[str, str, str]]:
    for status, answer in sorted(answers.items()):
        ((kind, shape),) = answer.get("content", {"": {"schema": {}}}).items()
        name = _reference(shape["schema"])
        if name == "Problem" and status in _ANYWHERE:
            continue
        told = answer["description"]
        if told == _UNTOLD:
            told = "Done." if name is None else schemas[name]["description"]
        yield status, _named(kind, shape) if kind else "nothing", told


def _shown(answers: Json, schemas: Json) -> str | None:
    ((kind, shape),) = next(iter(answers.values())).get("content", {"": {}}).items()
    if kind == "application/json":
        return f"```json\n{json.dumps(_example(shape['schema'], schemas), indent=2, ensure_ascii=False)}\n```"
    return f"```\n{shape['example'].strip()}\n```" if "example" in shape else None


def _named(kind: str, shape: Json) -> str:
    name = _reference(shape["schema"])
    if name is not None:
        return f"[{name}](#{name.lower()})"
    return f"`{kind}`"


def _curl(path: str, method: str, operation: Json, schemas: Json) -> str:
    filled, query, options = path, {}, []
    for one in operation.get("parameters", ()):
        example = _example(one["schema"], schemas)
        if one["in"] == "path":
            filled = filled.replace(f"{{{one['name']}}}", quote(str(example)))
        elif one["in"] == "query" and (one.get("required") or one["name"] == "after"):
            query[one["name"]] = str(example)
        elif one["name"] == "idempotency-key":
            options.append(f"-H 'Idempotency-Key: {example}'")
    body = operation.get("requestBody")
    if body is not None:
        ((kind, shape),) = body["content"].items()
        text = shape["example"] if "example" in shape else json.dumps(_asked(_example(shape["schema"], schemas)))
        options += [f"-H 'Content-Type: {kind}'", f"-d {shlex.quote(text)}"]
    if "text/event-stream" in operation["responses"].get("200", {}).get("content", ()):
        options.append("-N")
    url = f"'{_URL}{filled}?{urlencode(query)}'" if query else f"{_URL}{filled}"
    verb = [] if method == "GET" else [f"-X {method}"]
    return " \\\n  ".join([" ".join(["curl", *verb, url]), *options])


def _asked(body: Json) -> Json:
    """What somebody would send: nothing that is null or empty anyway."""
    return {key: value for key, value in body.items() if value not in (None, [], {}, "", 0)}


def _models(schemas: Json) -> Iterator[str]:
    yield "# What bodies and answers are made of"
    for name, schema in sorted(schemas.items()):
        yield f"## {name}\n\n{schema['description']}"
        required = schema.get("required", ())
        rows = [
            (f"`{field}`", _type(one), "" if field in required else "no", _meaning(one, one))
            for field, one in schema.get("properties", {}).items()
        ]
        yield _table(("field", "type", "required", "meaning"), rows)


def _meaning(described: Json, schema: Json) -> str:
    limits = [text for key, text in _LIMITS.items() if key in schema for text in [text.format(schema[key])]]
    if "default" in schema and schema["default"] is not None and schema["default"] not in ("", {}, []):
        limits.append(f"default {json.dumps(schema['default'])}")
    text = described.get("description", "")
    return f"{text} ({', '.join(limits)})" if limits else str(text)


_LIMITS: Mapping[str, str] = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "more than {:g}",
    "maximum": "at most {:,}",
    "maxLength": "at most {:,} characters",
    "maxItems": "at most {:,}",
}


def _type(schema: Json) -> str:
    name = _reference(schema)
    if name is not None:
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema and "type" not in schema:
        return " or ".join(_type(kind) for kind in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return "moment" if schema.get("format") == "date-time" else str(schema.get("type", "any JSON"))


def _example(schema: Json, schemas: Json) -> Any:
    if "examples" in schema:
        return schema["examples"][0]
    name = _reference(schema)
    if name is not None:
        return _example(schemas[name], schemas)
    if "properties" in schema:
        return {field: _example(one, schemas) for field, one in schema["properties"].items()}
    if "anyOf" in schema and "type" not in schema:
        return _example(schema["anyOf"][0], schemas)
    if schema.get("type") == "array":
        return [_example(schema["items"], schemas)]
    return schema["enum"][0] if "enum" in schema else schema.get("default")


def _reference(schema: Json) -> str | None:
    return str(schema["$ref"]).rpartition("/")[2] if "$ref" in schema else None


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _sentence(text: str) -> str:
    return text.partition("\n")[0].partition(". ")[0].rstrip(".")


def _anchor(heading: str) -> str:
    return "".join(letter for letter in heading.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def page() -> str:
    """The page of this project's API."""
    return reference(create_app(Runtime(Settings(app_env="test"))).openapi())


if __name__ == "__main__":
    sys.stdout.write(page())
