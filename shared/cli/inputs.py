"""What a person gives a workflow, from files, standard input and `--param`, and how it is refused when it cannot be used.

Nothing larger than the limit is read: a file is refused by its size, anything else after the first byte too many.
"""

import stat
import sys
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from shared.errors import InputError
from shared.workflows import Definition, InputField, load_definition

if TYPE_CHECKING:
    from shared.runtime import Runtime

_STDIN = "-"


def find_definition(live: "Runtime", workflow: str) -> Definition:
    """The definition that `workflow` names or, when it is the path of a .yaml file, the one in it, made known to `live`.

    Raises InputError for an unknown name, DefinitionError for a file that is not right.
    """
    path = Path(workflow)
    if path.suffix in (".yaml", ".yml"):
        agents = [name for name, spec in live.functions.items() if spec.is_agent]
        definition = load_definition(path, agents=agents, others=lambda: live.definitions)
        live.definitions[definition.name] = definition
        return definition
    known = live.definitions.get(workflow)
    if known is not None:
        return known
    names = sorted(live.definitions)
    guess = _guess(workflow, names, "did you mean {!r}? ")
    if not guess and path.is_file():
        guess = f"to work on that file: agent-team run {names[0]} --input FILE; " if names else ""
    raise InputError(f"there is no workflow {workflow[:60]!r}; {guess}there are: {', '.join(names)}")


def read_input(definition: Definition, *, source: str | None, params: Sequence[str], max_bytes: int) -> dict[str, Any]:
    """The workflow's input: what `source` holds (a file's path, or `-`), with the fields in `params` (`name=value`) laid over it.

    A .json file is the whole input; any other text becomes the one text field that the workflow requires. Raises InputError.
    """
    given = {} if source is None else _from_source(definition, source, max_bytes)
    for param in params:
        name, value = _param(definition, param)
        given[name] = value
    for name, field in definition.input.items():
        if field.required and given.get(name) is None:
            how = f"--input FILE or --param {name}=TEXT" if name == _text_field(definition) else f"--param {name}=…"
            raise InputError(f"workflow {definition.name} needs {name!r}; give it with {how}")
        if field.required and isinstance(given[name], str) and not given[name].strip():
            raise InputError(f"{name!r} is empty; write something for workflow {definition.name} to work on")
    definition.check_input(given)
    return _limited(given, max_bytes)


def read_unchecked(
    workflow: str, names: Collection[str], *, source: str | None, params: Sequence[str], max_bytes: int
) -> dict[str, Any]:
    """The input of a workflow that is none of `names`, those known here: a .json file, and fields of text. Raises InputError."""
    if source is not None and Path(source).suffix.lower() != ".json":
        guess = _guess(workflow, names, " (did you mean {!r}?)")
        raise InputError(
            f"workflow {workflow[:60]!r} is not known here{guess}: plain text has no field to go to; "
            "give --param NAME=TEXT or a .json file"
        )
    given = {} if source is None else _object(_read_text(source, repr(source), max_bytes), repr(source), ())
    given |= dict(_split(param, "name") for param in params)
    return _limited(given, max_bytes)


def _from_source(definition: Definition, source: str, max_bytes: int) -> dict[str, Any]:
    shown = "standard input" if source == _STDIN else repr(source)
    text = _read_text(source, shown, max_bytes)
    if Path(source).suffix.lower() == ".json":
        return _object(text, shown, definition.input)
    name = _text_field(definition)
    if name is None:
        fields = ", ".join(definition.input) if definition.input else "none"
        raise InputError(
            f"workflow {definition.name} has no single text field for {shown} (fields: {fields}); use --param or a .json file"
        )
    return {name: text}


def _read_text(source: str, shown: str, max_bytes: int) -> str:
    data = _read_stdin(max_bytes) if source == _STDIN else _read_file(source, shown, max_bytes)
    if len(data) > max_bytes:
        raise _too_large(shown, None, max_bytes)
    return _decoded(data, shown)


def _read_stdin(max_bytes: int) -> bytes:
    if sys.stdin is None:  # the process was started with it closed
        return b""
    if sys.stdin.isatty():
        from shared.cli.output import say

        say("type the input, then Ctrl-D on a line of its own", style="dim")
    return sys.stdin.buffer.read(max_bytes + 1)


def _read_file(source: str, shown: str, max_bytes: int) -> bytes:
    path = Path(source)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{shown} is a folder; give --input a file")
        if stat.S_ISREG(status.st_mode) and status.st_size > max_bytes:
            raise _too_large(shown, status.st_size, max_bytes)
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        raise InputError(f"there is no file {shown}; check the path given to --input") from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror}); check its permissions and the path") from None
    except ValueError:
        raise InputError(f"{shown} is not a path; give --input a file") from None


def _decoded(data: bytes, shown: str) -> str:
    if b"\0" in data:
        raise InputError(f"{shown} is not text: it holds NUL bytes; give UTF-8 text (UTF-16 must be converted)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{shown} is not UTF-8 text: line {line} holds other bytes; save it as UTF-8") from None
    if not text.strip():
        raise InputError(f"{shown} is empty; write what the workflow shall work on")
    return text


def _object(text: str, shown: str, names: Collection[str]) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"{shown} is not JSON: {error.msg} in line {error.lineno}; mend it, or rename it to .txt if it is text"
        ) from None
    if not isinstance(value, dict):
        fields = ", ".join(f'"{name}": …' for name in names)
        raise InputError(f"{shown} should hold an object, {{{fields}}}; or rename it to .txt if it is text")
    return value


def _param(definition: Definition, param: str) -> tuple[str, Any]:
    name, text = _split(param, _example(definition.input))
    field = definition.input.get(name)
    # An unknown field is refused with all the others, by the definition.
    if field is None or field.type == "string":
        return name, text
    try:
        return name, orjson.loads(text)
    except orjson.JSONDecodeError:
        raise InputError(f"--param {name}: {text[:60]!r} is not of type {field.type}; write it as JSON") from None


def _split(param: str, example: str) -> tuple[str, str]:
    name, equals, text = param.partition("=")
    if not name or not equals:
        raise InputError(f"--param {param[:60]!r} is not NAME=VALUE; write for instance --param {example}=VALUE")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"--param {name[:60]!r} is not UTF-8 text") from None
    return name, text


def _example(fields: Mapping[str, InputField]) -> str:
    return next(iter(fields), "name")


def _text_field(definition: Definition) -> str | None:
    """The field that plain text goes into: the only required text field, or the only text field."""
    texts = {name: field.required for name, field in definition.input.items() if field.type == "string"}
    required = [name for name, needed in texts.items() if needed]
    candidates = required if required else list(texts)
    return candidates[0] if len(candidates) == 1 else None


def _guess(workflow: str, names: Collection[str], form: str) -> str:
    close = get_close_matches(workflow[:60], names, n=1)
    return form.format(close[0]) if close else ""


def _limited(given: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    size = len(orjson.dumps(given))
    if size > max_bytes:
        raise _too_large("the input", size, max_bytes)
    return given


def _too_large(what: str, size: int | None, max_bytes: int) -> InputError:
    found = f"is {size:,} bytes, more than" if size is not None else "is more than"
    return InputError(f"{what} {found} the {max_bytes:,} bytes that are taken; shorten it, or raise MAX_PAYLOAD_BYTES")
