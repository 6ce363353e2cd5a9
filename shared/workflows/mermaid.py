"""Workflows as Mermaid flowcharts (https://mermaid.js.org/syntax/flowchart.html), which GitHub and many editors draw.

Nodes are numbered, and every label stands in quotes with all but plain characters written as codes: no name, prompt or output can
end a label, begin markup or become an instruction.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from shared.workflows.definitions import Definition, Step
from shared.workflows.schema import WORKING

_PLAIN: Final = frozenset(" .,_/:+-=()?!")
_LONGEST: Final = 60
_BREAK: Final = "<br/>"
_BOXES: Final = {
    "work": ('["', '"]'),
    "many": ('[["', '"]]'),
    "pattern": ('{{"', '"}}'),
    "workflow": ('[/"', '"/]'),
    "person": ('{"', '"}'),
    "pause": ('(["', '"])'),
}
_STYLES: Final = {
    "work": "fill:#e8eefc,stroke:#3b6fd4,color:#1a202c",
    "many": "fill:#e8eefc,stroke:#3b6fd4,color:#1a202c,stroke-width:3px",
    "pattern": "fill:#efe6fb,stroke:#7c3aed,color:#1a202c",
    "workflow": "fill:#e3f3f6,stroke:#1f7a8c,color:#1a202c",
    "person": "fill:#fdf0c8,stroke:#b7791f,color:#1a202c",
    "pause": "fill:#eceff3,stroke:#5a6472,color:#1a202c",
    "PENDING": "fill:#ffffff,stroke:#8a8f98,color:#1a202c,stroke-dasharray:4",
    "RUNNING": "fill:#dbe7ff,stroke:#2456c4,color:#1a202c,stroke-width:3px",
    "WAITING": "fill:#fdf0c8,stroke:#b7791f,color:#1a202c",
    "SUCCESS": "fill:#d9f2e3,stroke:#17693b,color:#1a202c",
    "FAILED": "fill:#fbdcdc,stroke:#a3262a,color:#1a202c",
    "SKIPPED": "fill:#eceff3,stroke:#8a8f98,color:#5a6472",
    "CANCELLED": "fill:#eceff3,stroke:#8a8f98,color:#5a6472",
}


def of_definition(definition: Definition) -> str:
    """The steps of a definition. What is only done `when` something holds hangs on dotted lines."""
    nodes = [(step.id, _shape(step), _shape(step), list(_told(step))) for step in definition.steps]
    return _chart(nodes, [(step.id, step.needs, step.when is not None) for step in definition.steps])


def of_run(document: Mapping[str, Any]) -> str:
    """The steps of a run, as the API shows it, with where each stands. Steps that one became are counted in its own node."""
    steps = [step for step in document["steps"] if step["parent"] is None]
    children: dict[str, list[str]] = {}
    for step in document["steps"]:
        if step["parent"] is not None:
            children.setdefault(step["parent"], []).append(step["status"])
    nodes = []
    for step in steps:
        kind, _, name = step["agent"].partition(":")
        shape = ("person" if name == "approval" else "pause") if kind == "wait" else kind if name and kind in _BOXES else "work"
        inside = children.get(step["id"], [])
        told = [step["agent"], step["status"]]
        if inside:
            shape = "many" if shape == "work" else shape
            told.append(f"{inside.count('SUCCESS')} of {len(inside)} steps done")
        nodes.append((step["id"], shape, step["status"], told))
    return _chart(nodes, [(step["id"], step["needs"], False) for step in steps])


def _chart(nodes: Sequence[tuple[str, str, str, list[str]]], edges: Sequence[tuple[str, Collection[str], bool]]) -> str:
    names = {id: f"s{number}" for number, (id, *_) in enumerate(nodes)}
    lines = ["flowchart TD"]
    for id, shape, style, told in nodes:
        opening, closing = _BOXES[shape]
        label = _BREAK.join(_escaped(line) for line in (id, *told))
        lines.append(f"    {names[id]}{opening}{label}{closing}:::{style}")
    for id, needs, is_conditional in edges:
        arrow = "-.->" if is_conditional else "-->"
        lines += [f"    {names[need]} {arrow} {names[id]}" for need in needs if need in names]
    for style in dict.fromkeys(style for _, _, style, _ in nodes):
        lines.append(f"    classDef {style} {_STYLES[style]}")
    return "\n".join(lines) + "\n"


def _shape(step: Step) -> str:
    if step.approval is not None:
        return "person"
    if step.wait is not None:
        return "pause"
    if step.for_each is not None:
        return "many"
    return "work" if (kind := _kind(step)) == "agent" else kind


def _told(step: Step) -> Iterator[str]:
    yield what(step)
    if step.for_each is not None:
        yield f"for each of {bare(step.for_each)}"
    if step.when is not None:
        yield f"when {bare(step.when)}"
    if step.on_failure == "continue":
        yield "goes on if it fails"


def what(step: Step) -> str:
    """Who or what a step is for, in words."""
    if step.approval is not None:
        return "waits for an approval"
    if step.wait is None:
        return f"{_kind(step)} {getattr(step, _kind(step))}"
    if step.wait.signal is not None:
        return f"waits for signal {step.wait.signal}"
    return f"waits for {bare(step.wait.seconds)} s" if step.wait.seconds is not None else f"waits until {bare(step.wait.until)}"


def _kind(step: Step) -> str:
    return next(key for key in WORKING if getattr(step, key) is not None)


def bare(template: Any) -> str:
    """A look-up as people read it: without its braces."""
    text = str(template)
    return text[2:-2].strip() if text.startswith("{{") and text.endswith("}}") and text.count("{{") == 1 else text


def _escaped(text: str) -> str:
    flat = " ".join(text.split())
    shown = flat if len(flat) <= _LONGEST else f"{flat[: _LONGEST - 1]}…"
    return "".join(one if one.isalnum() or one in _PLAIN else f"#{ord(one)};" for one in shown)
