"""What a typed function becomes when it is declared as a tool, and what is no tool."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from shared.ai import ToolContext, check_schema, declare
from shared.clock import ManualClock
from shared.errors import ConfigurationError, InputError

CONTEXT = ToolContext("wf_1/research/1", datetime(2026, 1, 1, tzinfo=UTC), ManualClock())


async def find_order(
    order: Annotated[str, "The order's number.", Field(min_length=2)],
    context: ToolContext,
    detail: Literal["short", "full"] = "short",
    lines: Annotated[list[int] | None, "Which lines."] = None,
    note: str | None = None,
    title: Annotated[float, Field(ge=0, description="How much.")] = 1.0,
    copy: bool = False,
) -> Any:
    """Look up an order,
    however old.

    Raises nothing.
    """
    return [order, context.idempotency_key, detail, lines, note, title, copy]


def test_a_function_is_told_by_its_name_docstring_and_annotations() -> None:
    declaration = declare(find_order).declaration
    assert (declaration.name, declaration.description) == ("find_order", "Look up an order, however old.")
    assert declaration.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["order"],
        "properties": {
            "order": {"type": "string", "description": "The order's number.", "minLength": 2},
            "detail": {"type": "string", "enum": ["short", "full"]},
            "lines": {"type": ["array", "null"], "items": {"type": "integer"}, "description": "Which lines."},
            "note": {"type": ["string", "null"]},
            "title": {"type": "number", "minimum": 0, "description": "How much."},
            "copy": {"type": "boolean"},
        },
    }
    check_schema(declaration.parameters)


def test_a_function_without_arguments_is_a_tool_too() -> None:
    def today() -> str:
        """Say which day it is."""
        return "Tuesday"

    tool = declare(today)
    assert tool.declaration.parameters == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert asyncio.run(tool.call({}, CONTEXT)) == "Tuesday"


async def test_a_call_is_made_with_the_arguments_their_defaults_and_the_context() -> None:
    given = await declare(find_order).call({"order": "A-1", "lines": [1.0, "2"]}, CONTEXT)
    assert given == ["A-1", "wf_1/research/1", "short", [1, 2], None, 1.0, False]


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ({}, "order: Field required"),
        ({"order": "A"}, "order: String should have at least 2 characters"),
        ({"order": 17}, "order: Input should be a valid string"),
        ({"order": "A-1", "detail": "secret value"}, "detail: Input should be 'short' or 'full'"),
        ({"order": "A-1", "context": {"idempotency_key": "mine"}}, "context: Extra inputs are not permitted"),
        ({"order": "A-1", "more": 1}, "more: Extra inputs are not permitted"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_before_the_call(arguments: dict[str, Any], mistake: str) -> None:
    with pytest.raises(InputError) as caught:
        await declare(find_order).call(arguments, CONTEXT)
    assert str(caught.value) == f"the arguments of find_order do not fit: {mistake}"


async def test_a_function_that_is_no_coroutine_does_not_hold_up_the_loop() -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> str:
        """Wait until the loop has let it go."""
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(timeout=10)
        return "released"

    call = asyncio.ensure_future(declare(wait).call({}, CONTEXT))
    await asyncio.sleep(0)
    release.set()
    assert await call == "released"


@dataclass
class Thing:
    size: int


class Opaque: ...


def no_annotation(order) -> str:  # type: ignore[no-untyped-def]
    """Find."""
    return str(order)


def rest(*orders: str) -> str:
    """Find."""
    return str(orders)


def options(**orders: str) -> str:
    """Find."""
    return str(orders)


def by_place(order: str, /) -> str:
    """Find."""
    return order


def silent(order: str) -> str:
    return order


def free(order: dict[str, int]) -> str:
    """Find."""
    return str(order)


def nested(order: Thing) -> str:
    """Find."""
    return str(order)


def opaque(order: Opaque) -> str:
    """Find."""
    return str(order)


def either(order: list[str] | dict[str, str]) -> str:
    """Find."""
    return str(order)


def called(order: Callable[[], str]) -> str:
    """Find."""
    return order()


def unknown(order: "Nowhere") -> str:  # type: ignore[name-defined]  # noqa: F821
    """Find."""
    return str(order)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (no_annotation, "its argument order has no annotation"),
        (rest, r"\*orders: str cannot be filled in by name"),
        (options, r"\*\*orders: str cannot be filled in by name"),
        (by_place, "order: str cannot be filled in by name"),
        (silent, "it has no docstring"),
        (free, "arguments.properties.order.additionalProperties can only be false"),
        (nested, r"arguments uses \$defs"),
        (opaque, r"an argument has a type that JSON does not have \(schema-for-unknown-type\)"),
        (called, r"an argument has a type that JSON does not have \(invalid-for-json-schema\)"),
        (either, "arguments.properties.order uses anyOf"),
        (unknown, r"its annotations cannot be read \(NameError\)"),
    ],
)
def test_what_a_model_cannot_be_told_is_refused_when_it_is_declared(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{function.__name__} cannot be a tool: {reason}"):
        declare(function)


def test_a_lambda_is_no_tool() -> None:
    with pytest.raises(ConfigurationError, match="use def"):
        declare(lambda: 1)
