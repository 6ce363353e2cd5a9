"""Templates look up values and nothing more: no code runs in them.

A template is JSON. In its strings, `{{ path }}` stands for a value: a path is a name followed by `.name` or `[index]`, such as
`input.brief`, `steps.plan.output.questions[0]` or `steps.debate/judge.output`. A string that is one place and nothing else
becomes the value itself, of whatever type; places inside longer text become text (strings as they are, other values as JSON).
Looked-up values are never evaluated again, so data that happens to contain `{{` stays data.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from shared.errors import InputError
from shared.references import Unopened, opened, reference

_NAME = r"[A-Za-z0-9_-]+(?:/@?[A-Za-z0-9_-]+)*"
_PATH = rf"{_NAME}(?:\.{_NAME}|\[\d{{1,6}}\])*"
_PLACE = re.compile(rf"\{{\{{\s*({_PATH})\s*\}}\}}")
_BRACES = re.compile(r"\{\{.*?(?:\}\}|$)", re.DOTALL)
_PART = re.compile(rf"\[(\d+)\]|({_NAME})")

Path = tuple[str | int, ...]


def render(template: Any, context: Mapping[str, Any]) -> Any:
    """Replace every place in `template` by its value in `context`.

    A value that is stored apart is passed on as the reference to it. Raises InputError naming the path when a place has no value or
    is not a path, and Unopened when it leads into a value that is stored apart, or such a value stands inside longer text.
    """
    if isinstance(template, str):
        return _render_text(template, context)
    if isinstance(template, Mapping):
        return {key: render(value, context) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [render(value, context) for value in template]
    return template


def paths(template: Any) -> Iterator[Path]:
    """Every path that `template` looks up, as parts: `steps.a.output[0]` is `("steps", "a", "output", 0)`.

    Raises InputError for braces that hold no path.
    """
    if isinstance(template, str):
        for braces in _BRACES.findall(template):
            yield _parts(_path(braces))
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from paths(value)
    elif isinstance(template, list | tuple):
        for value in template:
            yield from paths(value)


def replaced(template: Any, place: Callable[[str], str]) -> Any:
    """`template` with every path that it looks up replaced by what `place` makes of its text; it looks up as many as before.

    Raises InputError for braces that hold no path.
    """
    if isinstance(template, str):
        return _BRACES.sub(lambda braces: f"{{{{ {place(_path(braces[0]))} }}}}", template)
    if isinstance(template, Mapping):
        return {key: replaced(value, place) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [replaced(value, place) for value in template]
    return template


def _render_text(text: str, context: Mapping[str, Any]) -> Any:
    whole = _PLACE.fullmatch(text)
    if whole is not None:
        return _look_up(whole[1], context)
    return _BRACES.sub(lambda braces: _as_text(_look_up(_path(braces[0]), context)), text)


def _path(braces: str) -> str:
    place = _PLACE.fullmatch(braces)
    if place is None:
        raise InputError(f"{braces[:60]!r} is not a look-up; write {{{{ name.name[0] }}}}")
    return place[1]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(opened(value), option=orjson.OPT_INDENT_2).decode()


def _look_up(path: str, context: Mapping[str, Any]) -> Any:
    value: Any = context
    for part in _parts(path):
        stored = reference(value)
        if stored is not None:
            raise Unopened(stored)
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{{{{ {path} }}}} has no value: there is no {part!r}") from None
    return value


def _parts(path: str) -> Path:
    return tuple(int(index) if index else name for index, name in _PART.findall(path))
