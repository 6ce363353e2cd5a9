"""`agent-team show`: one workflow, its steps, and what they used."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import Id, UrlOrHere, Verbose, asks_gateway, checked_id
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.runtime import Runtime

_STEP_HEADS = ("step", "agent", "status", "attempts", "tokens", "cost", "time")
_MODEL_HEADS = ("model", "calls", "input tokens", "output tokens", "cost")


Tell = Callable[[dict[str, Any], Mapping[str, str]], None]
"""Shows a workflow, with why each skipped step was."""


def show(
    id: Id,
    url: UrlOrHere = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole workflow as one JSON object.")] = False,
    mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Print a Mermaid flowchart of its steps and where each stands.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """One workflow: the attempts, tokens, cost and time of each step, and what each model was asked."""
    with session(verbose=verbose) as settings:
        tell = _draw if mermaid else partial(_tell, as_json=as_json)
        run_async(_show(settings, url, checked_id(id), tell, as_json=as_json))


async def _show(settings: "Settings", url: str | None, id: str, tell: Tell, *, as_json: bool) -> None:
    from shared.cli.client import open_gateway
    from shared.cli.here import open_here

    if asks_gateway(settings, url):
        async with open_gateway(settings, url) as gateway:
            path = f"/v1/workflows/{id}"
            document = await (gateway.workflow(id, steps=True) if as_json else gateway.ask("GET", path))

            async def page(after: int) -> list[dict[str, Any]]:
                answer = await gateway.ask("GET", f"{path}/history", params={"after": after})
                with gateway.understood():
                    items: list[dict[str, Any]] = answer["items"]
                return items

            skipped = {} if as_json else await _skipped(document, page)
            with gateway.understood():
                tell(document, skipped)
    else:
        async with open_here(settings) as live:
            document = await live.store.get(id)
            await live.ring.fresh()
            _link(live, document)
            skipped = {} if as_json else await _skipped(document, lambda after: live.store.history(id, after=after))
            tell(await live.outputs.whole(document) if as_json else document, skipped)


def _link(live: "Runtime", document: dict[str, Any]) -> None:
    """Put in the links that the gateway gives: who reads the database and has its keys may hand them out as well."""
    from shared.cli.client import DEFAULT_URL
    from shared.messages import approval_links

    base = DEFAULT_URL if live.settings.public_url is None else live.settings.public_url
    for step in document["steps"]:
        waiting = step["waiting"]
        if waiting is not None and waiting["for"] == "approval":
            about = {"step": step["id"], "attempt": step["attempt"], "waiting": waiting}
            step["links"] = approval_links(live.ring, base, workflow=document["id"], **about, now=live.clock.now())


def _draw(document: dict[str, Any], _skipped: Mapping[str, str]) -> None:
    from shared.workflows.mermaid import of_run

    typer.echo(of_run(document), nl=False)


async def _skipped(document: dict[str, Any], page: Callable[[int], Awaitable[list[dict[str, Any]]]]) -> dict[str, str]:
    """Why each skipped step was; read from the history, a page at a time, where there are any."""
    from shared.cli.progress import why_skipped

    wanted = {step["id"] for step in document["steps"] if step["status"] == "SKIPPED"}
    found: dict[str, str] = {}
    after = 0
    while wanted - found.keys() and (entries := await page(after)):
        found |= {entry["step"]: why_skipped(entry["data"] or {}) for entry in entries if entry["type"] == "step.skipped"}
        after = entries[-1]["seq"]
    return found


def _tell(document: dict[str, Any], skipped: Mapping[str, str], *, as_json: bool) -> None:
    from shared.cli.output import described_prompt, one_line, printable, write_json, write_table
    from shared.cli.progress import what_it_waits_for

    if as_json:
        write_json(document)
        return
    _head(document)
    typer.echo("")
    write_table(_STEP_HEADS, [_step(step) for step in document["steps"]], numbers=_STEP_HEADS[3:])
    prompts = dict.fromkeys(described_prompt(one) for step in document["steps"] for one in step["prompts"])
    if prompts:
        typer.echo("")
        typer.echo(printable(f"prompts: {', '.join(prompts)}"))
    for step in document["steps"]:
        if step["waiting"] is not None:
            typer.echo("")
            typer.echo(printable(f"{step['id']} waits {what_it_waits_for(document['id'], step['waiting'])}"))
        if step.get("links"):
            typer.echo(printable(f"  whoever has this link can decide: {step['links']['approve']}"))
    for id, reason in skipped.items():
        typer.echo("")
        typer.echo(one_line(f"{id} was skipped: {reason}", longest=600))
    typer.echo("")
    usages = [*sorted(document["models"].items()), ("total", document["usage"])]
    write_table(_MODEL_HEADS, [_usage(name, usage) for name, usage in usages], numbers=_MODEL_HEADS[1:])


def _head(document: dict[str, Any]) -> None:
    from shared.cli.output import in_queue, one_line, printable

    typer.echo(printable(f"{document['workflow']} v{document['version']} · {document['id']} · {document['status']}"))
    if document["queue"] is not None:
        typer.echo(in_queue(document["queue"]))
    if document["paused_at"] is not None:
        by = f" by {document['paused_by']}" if document["paused_by"] else ""
        typer.echo(one_line(f"paused at {document['paused_at']}{by}; it goes on with: agent-team resume {document['id']}"))
    if document["forked_from"] is not None:
        typer.echo(f"forked from {document['forked_from']} at entry {document['forked_at']}")
    if document["error"] is not None:
        typer.echo(one_line(f"{document['error']['type']}: {document['error']['message']}", longest=600))


def _step(step: dict[str, Any]) -> tuple[str, ...]:
    from shared.cli.output import dollars

    usage = step["usage"]
    tokens = usage["input_tokens"] + usage["output_tokens"]
    what = (step["id"], step["agent"], step["status"], "reused" if step["reused"] else str(step["attempt"]))
    return (*what, f"{tokens:,}", dollars(usage["cost_microdollars"]), _time(step["started_at"], step["finished_at"]))


def _usage(name: str, usage: dict[str, int]) -> tuple[str, ...]:
    from shared.cli.output import dollars

    counts = (f"{usage[key]:,}" for key in ("model_calls", "input_tokens", "output_tokens"))
    return (name, *counts, dollars(usage["cost_microdollars"]))


def _time(started: str | None, finished: str | None) -> str:
    if started is None or finished is None:
        return "-"
    return f"{(datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds():.1f} s"
