"""`agent-team doctor`: is everything as it must be, and if not, what to do."""

from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.loop import run_async
from shared.cli.session import SUCCESS, USAGE, told_plainly

if TYPE_CHECKING:
    from shared.cli.checks import Check


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False) -> None:
    """Check configuration, keys, database, clock, bus, guards, model and the rest. Exits with 2 if something is not right."""
    with told_plainly():
        from shared.cli.checks import examine
        from shared.cli.output import write_json

        checks = run_async(examine())
        good = all(check.ok for check in checks)
        if as_json:
            write_json({"ok": good, "checks": [check.as_dict() for check in checks]})
        else:
            _show(checks)
        raise typer.Exit(SUCCESS if good else USAGE)


def _show(checks: "list[Check]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for check in checks:
            typer.echo(f"{'ok ' if check.ok else 'BAD'} {check.name}: {check.found}{f' -> {check.advice}' if check.advice else ''}")
        return
    table = Table("", "what", "found", "what to do", box=box.SIMPLE_HEAD)
    for check in checks:
        mark = Text("✓", style="green") if check.ok else Text("✗", style="bold red")
        table.add_row(mark, check.name, Text(check.found), Text(check.advice))
    console.print(table)
