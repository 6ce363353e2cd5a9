"""`agent-team signal`: decide on an approval, or send a signal that a step waits for."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import OR_HERE, Id, Json, Verbose, asks_gateway, checked_id, me
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.messages import WorkflowSignalled


def signal(
    id: Id,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The step that waits, or the signal that it waits for.")],
    approve: Annotated[bool, typer.Option("--approve", help="Approve.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Reject, which fails the step.")] = False,
    amend: Annotated[
        str | None, typer.Option("--amend", metavar="JSON", help="Approve, with this value instead of what was proposed.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="JSON", help="What the step's output shall hold.")] = None,
    comment: Annotated[str, typer.Option("--comment", metavar="TEXT", help="Kept in the history.")] = "",
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who says so; you when left out.")] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help=OR_HERE.replace("Ask", "Tell", 1))] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Tell a step that waits. What it is told first counts; what comes before it waits is kept for it."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import printable, write_json

        payload = _payload(checked_id(id), name, _decision(approve, reject, amend), data if amend is None else amend, comment, by)
        answer = run_async(_there(settings, url, payload) if asks_gateway(settings, url) else _here(settings, payload))
        if as_json:
            write_json(answer)
        else:
            typer.echo(printable(_TOLD[answer["outcome"]].format(**answer)))


_TOLD = {
    "woken": "{name} is woken; {id} is {status}",
    "kept": "{name} is kept until a step waits for it; {id} is {status}",
    "written": "{name} is written down; the platform here takes it within a second or, when it does not run, at its next start",
}


async def _here(settings: "Settings", payload: "WorkflowSignalled") -> dict[str, Any]:
    from ulid import ULID

    from shared.cli.here import open_here
    from shared.runtime.signals import send_signal

    async with open_here(settings) as live:
        # The bus of a platform in one process is inside it, so that what comes of the signal is for it to publish.
        later = settings.agent_bus_provider == "memory"
        outcome, status = await send_signal(live, payload, source="cli", signal=f"cli/{ULID()}", later=later)
    return {"id": payload.workflow, "name": payload.name, "status": status, "outcome": "written" if later else outcome}


async def _there(settings: "Settings", url: str | None, payload: "WorkflowSignalled") -> dict[str, Any]:
    from ulid import ULID

    from shared.cli.client import open_gateway

    path = f"/v1/workflows/{payload.workflow}/signals/{payload.name}"
    body = payload.model_dump(mode="json", exclude={"workflow", "name"})
    async with open_gateway(settings, url) as gateway:
        # The key makes it one signal, however often it is sent.
        answer = await gateway.ask("POST", path, body=body, headers={"idempotency-key": str(ULID())})
        with gateway.understood():
            return {name: answer[name] for name in ("id", "name", "status", "outcome")}


def _decision(approve: bool, reject: bool, amend: str | None) -> str | None:
    from shared.errors import InputError

    given = [word for word, is_given in (("approve", approve), ("reject", reject), ("amend", amend is not None)) if is_given]
    if len(given) > 1:
        raise InputError(f"give one of --approve, --reject and --amend, not --{' and --'.join(given)}")
    return given[0] if given else None


def _payload(id: str, name: str, decision: str | None, data: str | None, comment: str, by: str | None) -> "WorkflowSignalled":
    from pydantic import ValidationError

    from shared.errors import InputError
    from shared.messages import WorkflowSignalled

    fields = {"workflow": id, "name": name, "decision": decision, "comment": comment, "by": me() if by is None else by}
    try:
        return WorkflowSignalled.model_validate({**fields, "data": _json(data)})
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc'])) or 'the signal'}: {one['msg']}" for one in error.errors()]
        raise InputError("; ".join(wrong)) from None


def _json(text: str | None) -> Any:
    import orjson

    from shared.errors import InputError

    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise InputError("--data and --amend take JSON; text needs quotes of its own: --amend '\"like this\"'") from None
