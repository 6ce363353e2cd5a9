"""What definitions have to be for each other: a nested workflow is there, takes its input, and does not nest without end."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from shared.errors import InputError
from shared.templates import Path, paths
from shared.workflows.definitions import Definition, Step, type_name
from shared.workflows.source import Source
from shared.workflows.suggestions import quoted, suggestion

DEEPEST: Final = 5
"""Workflows below one another, the outermost not counted."""


def check_nesting(source: Source, definition: Definition, known: Mapping[str, Definition], *, unread: Collection[str] = ()) -> None:
    """Raise DefinitionError with what is wrong with the nested workflows of `definition`, which `source` holds.

    `known` has every definition by name, this one included; nothing is said about those in `unread`.
    """
    for index, step in enumerate(definition.steps):
        if step.workflow is None or step.workflow in unread:
            continue
        at: Path = ("steps", index)
        nested = known.get(step.workflow)
        if nested is None:
            names = [name for name in (*known, *unread) if name != definition.name]
            source.problem(
                (*at, "workflow"), f"unknown workflow {quoted(step.workflow)}, {suggestion(step.workflow, names, what='workflows')}"
            )
            continue
        _check_depth(source, (*at, "workflow"), definition.name, step.workflow, known)
        _check_input(source, (*at, "input"), step, nested)
    source.check()


def _check_depth(source: Source, at: Path, outer: str, name: str, known: Mapping[str, Definition]) -> None:
    """Level by level: of each workflow that is reached, one way there."""
    ways = {name: [outer, name]}
    for _ in range(DEEPEST):
        if outer in ways:
            source.problem(at, f"a cycle: {' → '.join(ways[outer])}; a workflow cannot be a step of itself")
            return
        ways = {below: [*way, below] for above, way in ways.items() for below in _nests(above, known)}
    if ways:
        way = next(iter(ways.values()))
        source.problem(at, f"nested more than {DEEPEST} deep: {' → '.join(way)}; make it flatter")


def _nests(name: str, known: Mapping[str, Definition]) -> Iterable[str]:
    return known[name].nests if name in known else ()


def _check_input(source: Source, at: Path, step: Step, nested: Definition) -> None:
    given = step.input
    if given is None and step.for_each is not None:
        return  # each item is the input of its own run
    if _looks_up(given):
        return
    if not isinstance(given, dict | None):
        source.problem(at, f"input of workflow {nested.name} should be a mapping of its fields, or one look-up")
        return
    fields = {} if given is None else given
    for name in fields.keys() - nested.input.keys():
        source.problem(
            (*at, name), f"workflow {nested.name} takes no {quoted(name)}, {suggestion(name, nested.input, what='fields')}"
        )
    for name, field in nested.input.items():
        value = fields.get(name)
        if value is None and field.required:
            source.problem(at, f"workflow {nested.name} needs {name!r}; give a value of type {field.type}")
        elif value is not None and not _looks_up(value) and not field.takes(value):
            source.problem((*at, name), f"{name!r} of workflow {nested.name} must be of type {field.type}, not {type_name(value)}")


def _looks_up(template: object) -> bool:
    """Whether text may become anything; braces that hold no look-up were reported where references are checked."""
    if not isinstance(template, str):
        return False
    try:
        return next(paths(template), None) is not None
    except InputError:
        return True
