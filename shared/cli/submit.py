"""`agent-team submit`: a workflow for a running platform."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import Stopped, run_async
from shared.cli.options import KEY_HINT, Params, Source, Url, remote
from shared.cli.session import FAILURE, SUCCESS
from shared.cli.workflows import complete_name

if TYPE_CHECKING:
    from shared.config import Settings

EPILOG = f"For example: agent-team submit report --input notes.md --wait. {KEY_HINT}"


def submit(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="A workflow's name.", autocompletion=complete_name)],
    source: Source = None,
    param: Params = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="Idempotency key: the same key and input start one workflow.")
    ] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Where others wait for a slot, the highest comes first.")] = 0,
    max_cost_usd: Annotated[float | None, typer.Option(min=0, metavar="USD", help="Budget of money, in dollars.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=0, metavar="N", help="Budget of tokens.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end and print its result, as `run` does.")] = False,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; with --wait the finished workflow.")] = False,
) -> None:
    """Start a workflow at a running platform and print its id. With --wait exits with 0 on success, 1 when it failed."""
    with remote() as settings:
        from math import isfinite

        from shared.cli.output import write_json
        from shared.errors import InputError

        if max_cost_usd is not None and not isfinite(max_cost_usd):
            raise InputError("--max-cost-usd must be a number of dollars, such as 0.50; without it there is no limit")
        budget = {"max_cost_usd": max_cost_usd, "max_tokens": max_tokens}
        body: dict[str, Any] = {
            "workflow": workflow,
            "input": _input(settings, workflow, source, param if param is not None else []),
            "budget": {name: value for name, value in budget.items() if value is not None},
            "priority": priority,
        }
        accepted = _submit(settings, url, body, _key(key))
        if wait:
            raise typer.Exit(_wait(settings, url, accepted["id"], as_json=as_json))
        if as_json:
            write_json(accepted)
        else:
            _tell(accepted, url)


def _submit(settings: "Settings", url: str | None, body: dict[str, Any], key: str) -> dict[str, Any]:
    from shared.cli.client import Unanswered
    from shared.cli.output import say
    from shared.errors import GatewayUnavailable

    once = f"the same command with --key {key} finds out, and starts no second one"
    try:
        return run_async(_post(settings, url, body, key))
    except Unanswered as error:
        raise GatewayUnavailable(f"{error}; whether the workflow has started is not known: {once}") from error
    except Stopped:
        say(f"whether the workflow has started is not known: {once}")
        raise


async def _post(settings: "Settings", url: str | None, body: dict[str, Any], key: str) -> dict[str, Any]:
    from shared.cli.client import open_gateway
    from shared.cli.options import checked_id

    async with open_gateway(settings, url) as gateway:
        accepted = await gateway.ask("POST", "/v1/workflows", body=body, headers={"idempotency-key": key})
        with gateway.understood():
            checked_id(accepted["id"])
            return {**accepted, "idempotency_key": key}


def _wait(settings: "Settings", url: str | None, id: str, *, as_json: bool) -> int:
    from shared.cli.following import command
    from shared.cli.output import say

    say(f"{id} · {command(id, url)} follows it, too")
    try:
        return run_async(_follow(settings, url, id, as_json=as_json))
    except Stopped:
        say(f"{id} goes on; come back to it with: {command(id, url)}")
        raise


async def _follow(settings: "Settings", url: str | None, id: str, *, as_json: bool) -> int:
    from shared.cli.client import open_gateway
    from shared.cli.following import command, follow
    from shared.cli.outcome import reason, summary
    from shared.cli.output import say, say_error, write_json, write_result

    async with open_gateway(settings, url) as gateway:
        document = await follow(gateway, id, again=command(id, url), known=True)
        with gateway.understood():
            succeeded = document["status"] == "SUCCESS"
            say(summary(document), style="green" if succeeded else "red")
            if not succeeded:
                say_error(f"{reason(document)}; every step is told by: agent-team show {id}")
            if as_json:
                write_json(document)
            elif succeeded:
                write_result(document["output"])
    return SUCCESS if succeeded else FAILURE


def _tell(accepted: dict[str, Any], url: str | None) -> None:
    from shared.cli.following import command
    from shared.cli.output import say

    typer.echo(accepted["id"])
    if sys.stdout.isatty() or sys.stderr.isatty():
        say(f"follow it with: {command(accepted['id'], url)}", style="dim")


def _input(settings: "Settings", workflow: str, source: str | None, params: list[str]) -> dict[str, Any]:
    """What the workflow shall work on. Where this installation does not know the workflow, only the gateway can check it."""
    from shared.cli.inputs import find_definition, read_input, read_unchecked
    from shared.errors import InputError
    from shared.runtime import Runtime

    if workflow.endswith((".yaml", ".yml")):
        raise InputError(f"the platform does not have {workflow[:60]!r}; submit takes the name of a workflow")
    live = Runtime(settings, serves=("cli",))
    if workflow in live.definitions:
        definition = find_definition(live, workflow)
        return read_input(definition, source=source, params=params, max_bytes=settings.max_payload_bytes)
    return read_unchecked(workflow, sorted(live.definitions), source=source, params=params, max_bytes=settings.max_payload_bytes)


def _key(given: str | None) -> str:
    """An idempotency key: the one that was given, or one that nobody else has."""
    from uuid import uuid4

    from shared.errors import InputError

    if given is None:
        return f"cli-{uuid4()}"
    if not (0 < len(given) <= 255 and given.isascii() and given.isprintable() and " " not in given):
        raise InputError("--key must be 1 to 255 visible ASCII characters, without blanks")
    return given
