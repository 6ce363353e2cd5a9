"""Definition files: YAML text → definition. Every mistake is a DefinitionError, one `file:line: reason, how to mend it` a line.

Of YAML (1.1, as PyYAML reads it) only what JSON can say is taken: mappings with text keys, lists, text, numbers, true, false, null.
Anchors, aliases, tags and dates are refused, as are duplicate keys, which YAML itself forbids. The only module that imports PyYAML.
"""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path as File
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import SafeConstructor

from shared.errors import DefinitionError
from shared.templates import Path
from shared.workflows.checking import checked
from shared.workflows.definitions import Definition
from shared.workflows.nesting_checks import check_nesting
from shared.workflows.source import Source

Others = Callable[[], Mapping[str, Definition]]
"""What tells the other definitions that there are, by name."""

_LARGEST_FILE_BYTES = 256 * 1024
_DEEPEST = 50
_TAG = "tag:yaml.org,2002:"


def load_definitions(folder: File, *, agents: Collection[str]) -> dict[str, Definition]:
    """Every definition `<name>.yaml` in `folder`, by name.

    Raises DefinitionError with the mistakes of all files.
    """
    if not folder.is_dir():
        raise DefinitionError(f"{folder}:1: there is no such folder; name the one that holds the definitions")
    loaded: dict[str, tuple[Source, Definition]] = {}
    problems: list[str] = []
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".yaml", ".yml")]
    for file in files:
        try:
            loaded[file.stem] = _load(file, agents)
        except DefinitionError as exc:
            problems.append(str(exc))
    definitions = {name: definition for name, (_, definition) in loaded.items()}
    for source, definition in loaded.values():
        try:
            # A file with a mistake of its own is there all the same.
            check_nesting(source, definition, definitions, unread={file.stem for file in files} - loaded.keys())
        except DefinitionError as exc:
            problems.append(str(exc))
    if problems:
        raise DefinitionError("\n".join(problems))
    return definitions


def load_definition(file: File, *, agents: Collection[str], others: Others = dict) -> Definition:
    """The definition in `file`, which is named after it.

    `agents` are the agents that there are; `others` is asked for the other definitions when it nests any. Raises DefinitionError.
    """
    return _nesting_checked(*_load(file, agents), others)


def parse_definition(text: str, *, file: str, agents: Collection[str], others: Others = dict) -> Definition:
    """The definition that `text` holds; `file` is what messages call it. Raises DefinitionError."""
    source = _source(text, file)
    return _nesting_checked(source, checked(source, agents=agents), others)


def _load(file: File, agents: Collection[str]) -> tuple[Source, Definition]:
    source = _source(_read(file), str(file))
    definition = checked(source, agents=agents)
    if file.name != f"{definition.name}.yaml":
        raise DefinitionError(f"{file}:1: it defines {definition.name!r}; name the file {definition.name}.yaml")
    return source, definition


def _nesting_checked(source: Source, definition: Definition, others: Others) -> Definition:
    if definition.nests:
        check_nesting(source, definition, {**others(), definition.name: definition})
    return definition


def _read(file: File) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST_FILE_BYTES + 1)
    except OSError as exc:
        raise DefinitionError(f"{file}:1: cannot be read: {exc.strerror}") from exc
    if len(data) > _LARGEST_FILE_BYTES:
        raise DefinitionError(
            f"{file}:1: larger than {_LARGEST_FILE_BYTES // 1024} KB; move data out of the definition into its input"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise DefinitionError(f"{file}:{line}: not UTF-8; save the file as UTF-8") from exc


def _source(text: str, file: str) -> Source:
    try:
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        reason = ", ".join(part for part in (exc.context, exc.problem) if part)
        raise DefinitionError(f"{file}:{mark.line + 1 if mark else 1}: not YAML: {reason}") from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise DefinitionError(f"{file}:{line}: a control character that YAML forbids; remove it") from exc
    except (ValueError, OverflowError) as exc:
        # PyYAML lets these through for escapes beyond Unicode and for absurd version numbers.
        raise DefinitionError(f"{file}:1: not YAML: an escape or a directive holds an impossible number") from exc
    if root is None:
        raise DefinitionError(f"{file}:1: the file is empty; write name, version and steps")
    reading = _Reading()
    value = reading.value(root, ())
    source = Source(file, value, reading.lines)
    for line, message in reading.problems:
        source.problem_at(line, message)
    return source


class _Loader(yaml.SafeLoader):
    """Refuses, before composing it, what could grow without bound or is not JSON."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise ComposerError(None, None, "anchors and aliases are not used here; write the value out", event.start_mark)
        if event.tag is not None:
            raise ComposerError(
                None, None, "tags are not used here; remove it, and quote the value if it is text", event.start_mark
            )
        if self._depth == _DEEPEST:
            raise ComposerError(None, None, f"nested more than {_DEEPEST} levels deep; make it flatter", event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Reading:
    """Turns nodes into values, and remembers the line of each by its path."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.problems: list[tuple[int, str]] = []

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key is None:
                continue
            if key in values:
                first = self.lines[(*path, key)]
                self._note(key_node, f"duplicate key {key[:60]!r}, first on line {first}; keep one of them")
                continue
            self.lines[(*path, key)] = _line(key_node)
            values[key] = self.value(value_node, (*path, key))
        return values

    def _key(self, node: yaml.Node) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._note(node, 'a key must be text; a template needs quotes: "{{ input.name }}"')
            return None
        if node.tag != _TAG + "str":
            self._note(node, f"the key {node.value[:60]!r} is not read as text; put it in quotes")
            return None
        return str(self._scalar(node))

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        read = _SCALARS.get(node.tag.removeprefix(_TAG))
        if read is None:
            self._note(node, f"{node.value[:60]!r} is read as a {node.tag.removeprefix(_TAG)}; put it in quotes")
            return None
        try:
            return read(node)
        except ValueError as exc:
            self._note(node, str(exc))
            return None

    def _note(self, node: yaml.Node, message: str) -> None:
        self.problems.append((_line(node), message))


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _text(node: yaml.ScalarNode) -> str:
    text = str(node.value)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the text holds NUL or half of a surrogate pair, which cannot be stored; remove it")
    return text


def _integer(node: yaml.ScalarNode) -> int:
    try:
        number = int(_constructor.construct_yaml_int(node))
    except ValueError:
        raise ValueError(f"{node.value[:60]!r} is not a number; put it in quotes if it is text") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError("the number does not fit into 64 bits; put it in quotes")
    return number


def _float(node: yaml.ScalarNode) -> float:
    number = float(_constructor.construct_yaml_float(node))
    if not math.isfinite(number):
        raise ValueError(f"{node.value[:60]!r} is not a number in JSON; write a finite one")
    return number


_constructor = SafeConstructor()
_SCALARS: dict[str, Callable[[yaml.ScalarNode], Any]] = {
    "str": _text,
    "null": lambda node: None,
    "bool": _constructor.construct_yaml_bool,
    "int": _integer,
    "float": _float,
}
