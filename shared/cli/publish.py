"""`agent-team publish`: a signed request for a workflow, straight onto the bus."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import Json, Params, Source, Verbose
from shared.cli.session import session
from shared.cli.workflows import complete_name

if TYPE_CHECKING:
    from shared.bus import Message
    from shared.messages import WorkflowRequested
    from shared.runtime import Runtime

_MOST = 100_000
_LONGEST_ARGUMENT = 128 * 1024 - 1
"""What Linux takes as one argument of a command."""


def publish(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="A workflow's name.", autocompletion=complete_name)],
    source: Source = None,
    param: Params = None,
    id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The message's id: one that was published before starts nothing.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=_MOST, help="How many workflows to start, under the ids ID-1, ID-2, ….")] = 1,
    callback_url: Annotated[
        str | None, typer.Option("--callback-url", metavar="URL", help="Where to tell the end, as a signed webhook.")
    ] = None,
    printed: Annotated[
        bool, typer.Option("--print", help="Publish nothing; print the gcloud commands that would, for machines without this one.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Ask for a workflow over the bus, past the gateway, and print the id that it will have. Nobody answers: `show` tells."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import write_json
        from shared.runtime import Runtime

        live = Runtime(settings, serves=("cli",))
        wanted = _wanted(live, workflow, source, param, callback_url)
        sender = live.sender("cli")
        messages = [sender.request(wanted, id=one) for one in _ids(live, id, count)]
        requests = [_request(live, message) for message in messages]
        if printed:
            commands = [gcloud_command(message, project=settings.gcp_project_id) for message in messages]
            requests = [{**request, "command": command} for request, command in zip(requests, commands, strict=True)]
        else:
            run_async(_publish(live, messages))
        if as_json:
            write_json({"published": not printed, "requests": requests})
        else:
            for request in requests:
                typer.echo(request["command"] if printed else request["workflow"])


def _wanted(
    live: "Runtime", workflow: str, source: str | None, param: list[str] | None, callback_url: str | None
) -> "WorkflowRequested":
    from shared.cli.inputs import find_definition, read_input
    from shared.errors import InputError
    from shared.messages import WorkflowRequested
    from shared.runtime.requests import check_callback

    if workflow.endswith((".yaml", ".yml")):
        raise InputError(f"whoever takes the message does not have {workflow[:60]!r}; publish takes the name of a workflow")
    definition = find_definition(live, workflow)
    params = () if param is None else param
    given = read_input(definition, source=source, params=params, max_bytes=live.settings.max_payload_bytes)
    check_callback(live, callback_url)
    return WorkflowRequested(workflow=definition.name, input=given, callback_url=callback_url)


def gcloud_command(message: "Message", *, project: str | None) -> str:
    """What a shell needs to publish exactly this message with Google's own tool. Raises InputError for one that is too long.

    A signature holds a comma, so the attributes are set apart by colons, which none of them holds: `gcloud topic escaping`.
    """
    from shared.errors import InputError

    text = message.data.decode()
    if len(message.data) > _LONGEST_ARGUMENT:
        raise InputError(
            f"the message has {len(message.data):,} bytes and a command takes {_LONGEST_ARGUMENT:,}; publish it without --print"
        )
    attributes = ":".join(f"{name}={value}" for name, value in message.attributes.items())
    words = ["gcloud", "pubsub", "topics", "publish", message.topic]
    words += [] if project is None else ["--project", project]
    return shlex.join([*words, f"--message={text}", f"--attribute=^:^{attributes}"])


def _ids(live: "Runtime", id: str | None, count: int) -> list[str]:
    from shared.ids import workflow_id

    first = workflow_id(live.clock.now()).replace("wf_", "req_") if id is None else id
    return [first] if count == 1 else [f"{first}-{number}" for number in range(1, count + 1)]


def _request(live: "Runtime", message: "Message") -> dict[str, Any]:
    """What will become of the message: intake makes the same id of it."""
    from shared.ids import workflow_id_for
    from shared.messages import reopen_envelope

    limit = live.settings.max_payload_bytes
    envelope = reopen_envelope(message.topic, message.data, message.attributes, ring=live.ring, max_bytes=limit)
    return {"id": envelope.id, "workflow": workflow_id_for(f"{envelope.source}#{envelope.id}", envelope.time)}


async def _publish(live: "Runtime", messages: "list[Message]") -> None:
    from shared.errors import ConfigurationError

    if live.settings.agent_bus_provider == "memory":
        raise ConfigurationError(
            "AGENT_BUS_PROVIDER is memory, and that bus is inside the running platform; use agent-team submit, or --print"
        )
    try:
        await live.bus.publish(messages)
    finally:
        await live.close()
