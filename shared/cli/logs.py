"""`agent-team logs`: what all functions logged of one workflow."""

from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.loop import run_async
from shared.cli.options import Id, checked_id, remote
from shared.cli.session import FAILURE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shared.cli.log_lines import Line
    from shared.config import Settings


def logs(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the workflow has ended, or Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every line as one JSON object.")] = False,
) -> None:
    """The log lines of one workflow, of all functions, by time.

    They come from Cloud Logging where GCP_PROJECT_ID is set, else from the log in AGENT_TEAM_HOME. Exit code 1 when there is none.
    """
    with remote() as settings:
        if run_async(_logs(settings, checked_id(id), follow=follow, as_json=as_json)) == 0:
            raise typer.Exit(FAILURE)


async def _logs(settings: "Settings", id: str, *, follow: bool, as_json: bool) -> int:
    import orjson

    from shared.cli.log_lines import as_json as fields_of
    from shared.cli.log_lines import told
    from shared.cli.output import say

    count = 0
    async for line in _lines(settings, id, follow=follow):
        count += 1
        if as_json:
            typer.echo(orjson.dumps(fields_of(line)))
        else:
            text, style = told(line)
            typer.echo(typer.style(text, fg=style if style in ("yellow", "red") else None, dim=style == "dim"))
    if count == 0:
        say(f"nothing was logged of {id} {_hint(settings)}")
    elif settings.gcp_project_id is not None:
        from shared.cli.cloud_logs import MOST_LINES

        if count >= MOST_LINES:
            say(f"these are the first {MOST_LINES:,} lines; see the rest in the console's Logs Explorer")
    return count


def _lines(settings: "Settings", id: str, *, follow: bool) -> "AsyncIterator[Line]":
    from shared.clock import SystemClock

    if settings.gcp_project_id is not None:
        from shared.cli.cloud_logs import CloudLog

        return CloudLog(settings.gcp_project_id, SystemClock()).lines(id, follow=follow)
    from shared.cli.local_logs import lines
    from shared.local.home import LOG_FILE

    return lines(settings.agent_team_home / LOG_FILE, id, follow=follow, clock=SystemClock())


def _hint(settings: "Settings") -> str:
    if settings.gcp_project_id is not None:
        return (
            f"in the project {settings.gcp_project_id}: see that it is the right one, that LOG_LEVEL is info, and that it "
            "ran within the log's retention (30 days); lines take some seconds to arrive"
        )
    return (
        f"in {settings.agent_team_home}: see that AGENT_TEAM_HOME is the platform's and LOG_LEVEL is info; "
        "what a platform in the cloud logged is read where GCP_PROJECT_ID is set"
    )
