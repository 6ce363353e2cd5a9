"""`agent-team workflows`: what the team knows to do."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.session import told_plainly

if TYPE_CHECKING:
    from rich.tree import Tree

    from shared.workflows import Definition, Step

_WIDTH_IN_A_PIPE = 1000

_FOLDER = Path(__file__).parents[2] / "workflows"

app = typer.Typer(help="List, check and show workflow definitions.", invoke_without_command=True)


def complete_name(incomplete: str) -> list[str]:
    """The names of workflows that begin so, for a shell. A definition's file is named after it, so none is read."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml") if file.stem.startswith(incomplete))


@app.callback()
def default(context: typer.Context) -> None:
    """List, check and show workflow definitions."""
    if context.invoked_subcommand is None:
        list_()


@app.command(name="list")
def list_() -> None:
    """Every workflow of this installation."""
    with told_plainly():
        for definition in sorted(_definitions().values(), key=lambda one: one.name):
            typer.echo(f"{definition.name} v{definition.version}  {definition.description}")
            if definition.input:
                typer.echo(f"    input: {_fields(definition)}")
            if definition.schedule is not None:
                typer.echo(f"    schedule: {definition.schedule.cron} (UTC), catch_up: {definition.schedule.catch_up}")


@app.command()
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Definitions; all of this installation when left out.")
    ] = None,
) -> None:
    """Check definitions: exits with 2 and the line of every mistake when one is wrong."""
    with told_plainly():
        from shared.cli.output import counted

        definitions = (
            _load(files) if files else {str(_shown(_FOLDER / f"{name}.yaml")): one for name, one in _definitions().items()}
        )
        for file, definition in definitions.items():
            typer.echo(f"{file}: right, {definition.name} v{definition.version}, {counted(len(definition.steps), 'step')}")
        typer.echo(f"{counted(len(definitions), 'definition')} checked")


@app.command()
def schema() -> None:
    """The JSON Schema of definitions (draft 2020-12), with the agents of this installation, for editors."""
    with told_plainly():
        typer.echo(schema_text(), nl=False)


def schema_text() -> str:
    """What `workflows schema` prints, and docs/workflow.schema.json holds."""
    import json

    from shared.workflows.schema import definition_schema

    return json.dumps(definition_schema(agents=_agents()), indent=2, ensure_ascii=False) + "\n"


@app.command()
def show(
    workflow: Annotated[
        str,
        typer.Argument(metavar="WORKFLOW", help="A workflow's name, or the path of its .yaml file.", autocompletion=complete_name),
    ],
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart, which GitHub draws.")] = False,
) -> None:
    """The steps of a workflow, each below the last step that it waits for."""
    with told_plainly():
        from rich.console import Console

        from shared.cli.inputs import find_definition
        from shared.config import Settings
        from shared.runtime import Runtime

        # Default settings: definitions do not depend on the environment.
        definition = find_definition(Runtime(Settings()), workflow)
        if mermaid:
            from shared.workflows.mermaid import of_definition

            typer.echo(of_definition(definition), nl=False)
            return
        width = None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE
        Console(highlight=False, width=width).print(_tree(definition))


def _definitions() -> "dict[str, Definition]":
    from shared.runtime.wiring import WORKFLOWS
    from shared.workflows import load_definitions

    return load_definitions(WORKFLOWS, agents=_agents())


def _load(files: list[Path]) -> "dict[str, Definition]":
    """The definition in each file. Raises DefinitionError with the mistakes of all."""
    from shared.errors import DefinitionError
    from shared.workflows import load_definition

    agents, definitions, problems = _agents(), {}, []
    for file in files:
        try:
            definitions[str(file)] = load_definition(file, agents=agents, others=_definitions)
        except DefinitionError as error:
            problems.append(str(error))
    if problems:
        raise DefinitionError("\n".join(problems))
    return definitions


def _shown(file: Path) -> Path:
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _agents() -> list[str]:
    from shared.runtime.spec import load_functions

    return [name for name, spec in load_functions().items() if spec.is_agent]


def _fields(definition: "Definition") -> str:
    return ", ".join(f"{name} ({field.type}{', required' if field.required else ''})" for name, field in definition.input.items())


def _tree(definition: "Definition") -> "Tree":
    from graphlib import TopologicalSorter

    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(f"{definition.name} v{definition.version}  {definition.description}"))
    steps = {step.id: step for step in definition.steps}
    branches: dict[str, Tree] = {}
    depths: dict[str, int] = {}
    for step_id in TopologicalSorter({step.id: step.needs for step in definition.steps}).static_order():
        step = steps[step_id]
        parent = max(step.needs, key=depths.__getitem__, default=None)
        depths[step_id] = 0 if parent is None else depths[parent] + 1
        others = [need for need in step.needs if need != parent]
        branches[step_id] = (root if parent is None else branches[parent]).add(Text(_line(step, others)))
    return root


def _line(step: "Step", others: list[str]) -> str:
    from shared.workflows.mermaid import bare, what

    notes = [f"for each of {bare(step.for_each)}"] if step.for_each is not None else []
    notes += [f"when {bare(step.when)}"] if step.when is not None else []
    notes += [f"also needs {', '.join(others)}"] if others else []
    notes += ["goes on if it fails"] if step.on_failure == "continue" else []
    return f"{step.id}: {what(step)}{''.join(f'; {note}' for note in notes)}"
