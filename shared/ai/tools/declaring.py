"""Typed functions as tools: what a model is told of them, and how they are called with what it sends.

    async def order_status(order: Annotated[str, "The order's number, such as A-1234."], context: ToolContext) -> dict[str, str]:
        '''Look up how far an order is.'''

The first paragraph of the docstring is the tool's description, the text in `Annotated` an argument's; pydantic makes the schema of
the arguments and checks them. A parameter annotated `ToolContext` is filled in by the platform and not shown to the model.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, NoReturn, NotRequired, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict

from shared.ai.base import Declaration, JsonSchema
from shared.ai.schema import check_schema
from shared.clock import Clock
from shared.errors import ConfigurationError, InputError

_LONGEST_NAME = 64
_UNSAID = ("title", "default")
"""Keywords of pydantic that tell a model nothing which the names and `required` do not."""
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may know of the call that it serves."""

    idempotency_key: str
    """`<workflow>/<step>/<call>`: a retried attempt that makes the same call has the same key, so what the call changes elsewhere
    can be changed once."""
    deadline: datetime
    """When the call is given up. A tool that is no coroutine goes on in its thread after that, and should look at it."""
    clock: Clock


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call."""

    declaration: Declaration
    _function: Callable[..., Any] = field(repr=False)
    _arguments: TypeAdapter[dict[str, Any]] = field(repr=False)
    _context: str | None = None
    """The name of the parameter that takes the context."""

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.declaration.name

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Any:
        """What the function gives; one that is no coroutine runs in a thread. Raises InputError for arguments that do not fit."""
        try:
            given = self._arguments.validate_python(dict(arguments))
        except ValidationError as exc:
            raise InputError(f"the arguments of {self.name} do not fit: {_mistakes(exc)}") from None
        if self._context is not None:
            given[self._context] = context
        if inspect.iscoroutinefunction(self._function):
            return await self._function(**given)
        return await asyncio.to_thread(self._function, **given)


def declare(function: Callable[..., Any]) -> Tool:
    """The tool that `function` is. Raises ConfigurationError naming what about it a model could not be told."""
    name = getattr(function, "__name__", "")
    if not name.isidentifier() or not name.isascii() or len(name) > _LONGEST_NAME:
        _refuse(name or repr(function), f"a tool is a function with a name of at most {_LONGEST_NAME} ASCII letters; use def")
    description = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    if not description:
        _refuse(name, "it has no docstring; its first paragraph tells the model what the tool does")
    arguments, context = _arguments(name, function)
    return Tool(Declaration(name, description, _schema(name, arguments)), function, arguments, context)


def _arguments(name: str, function: Callable[..., Any]) -> tuple[TypeAdapter[dict[str, Any]], str | None]:
    """What checks a call's arguments, and the name of the parameter that takes the context."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as exc:  # whatever evaluating an annotation may raise
        _refuse(name, f"its annotations cannot be read ({type(exc).__name__}); import what they name at run time")
    fields: dict[str, Any] = {}
    context = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in _VARIADIC:
            _refuse(name, f"{parameter} cannot be filled in by name; give each argument a name of its own")
        if parameter.name not in hints:
            _refuse(name, f"its argument {parameter.name} has no annotation; write its type")
        hint = hints[parameter.name]
        if hint is ToolContext:
            context = parameter.name
            continue
        optional = parameter.default is not inspect.Parameter.empty
        fields[parameter.name] = NotRequired[_described(hint)] if optional else _described(hint)
    # A dictionary rather than a model: no argument can collide with a model's own attributes.
    shape = with_config(ConfigDict(extra="forbid"))(cast(Any, TypedDict)(name, fields))
    try:
        return TypeAdapter(shape), context
    except PydanticUserError as exc:
        _refuse(name, f"an argument has a type that JSON does not have ({exc.code}); use str, int, float, bool, list, Literal")


def _described(hint: Any) -> Any:
    """`hint` with the text in its `Annotated` as the description that pydantic knows."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, *notes = get_args(hint)
    for note in notes:
        kind = Annotated[kind, Field(description=note) if isinstance(note, str) else note]
    return kind


def _schema(name: str, arguments: TypeAdapter[dict[str, Any]]) -> JsonSchema:
    try:
        schema: JsonSchema = _said(arguments.json_schema())
        check_schema(schema, "arguments")
    except PydanticUserError as exc:
        _refuse(name, f"an argument has a type that JSON does not have ({exc.code}); use str, int, float, bool, list, Literal")
    except ConfigurationError as exc:
        _refuse(name, str(exc))
    return schema


def _said(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as pydantic writes it, in the words that `check_schema` knows where there are such."""
    said = {keyword: value for keyword, value in schema.items() if keyword not in _UNSAID}
    if "const" in said:
        said["enum"] = [said.pop("const")]
    kinds = [_said(one) for one in said.get("anyOf", ())]
    rich = [kind for kind in kinds if set(kind) != {"type"}]
    if kinds and len(rich) <= 1 and all(isinstance(kind.get("type"), str) for kind in kinds):
        # `str | None`, `list[str] | None`: JSON Schema says it with a list of types, as long as only one of them has more to say.
        del said["anyOf"]
        said.update(*rich, type=[kind["type"] for kind in kinds])
    if "properties" in said:
        said["properties"] = {name: _said(child) for name, child in said["properties"].items()}
        said.setdefault("required", [])
    if isinstance(said.get("items"), Mapping):
        said["items"] = _said(said["items"])
    return said


def _mistakes(exc: ValidationError) -> str:
    """What is wrong with the arguments, in one line. Values are left out."""
    told = [
        f"{'.'.join(map(str, one['loc'])) or 'they'}: {one['msg']}"
        for one in exc.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(told[:5])


def _refuse(name: str, reason: str) -> NoReturn:
    raise ConfigurationError(f"{name} cannot be a tool: {reason}")
