"""`agent-team smoke`: whether what was just deployed works."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from shared.cli.loop import run_async
from shared.cli.options import KEY_HINT, Url, remote
from shared.cli.session import FAILURE

if TYPE_CHECKING:
    from shared.cli.client import Gateway
    from shared.cli.revisions import Revisions
    from shared.config import Settings

EPILOG = KEY_HINT
_ENVIRONMENTS: Final = Path(__file__).parents[2] / "infra" / "environments"
_TICKET: Final = "Smoke test after a deployment: the export button on the invoice page answers with an error since this morning."
_WAIT_SECONDS: Final = 180.0
_LOOK_SECONDS: Final = 2.0


def smoke(
    env: Annotated[
        str | None,
        typer.Option("--env", metavar="NAME", help="The environment whose domain is asked, as infra/environments has it."),
    ] = None,
    revisions: Annotated[
        str | None,
        typer.Option(
            metavar="TAG", help="Ask the revisions under this tag, one for each function, instead; from inside the project."
        ),
    ] = None,
    project_number: Annotated[
        str | None, typer.Option(metavar="NUMBER", envvar="PROJECT_NUMBER", help="The project that the revisions are in.")
    ] = None,
    url: Url = None,
) -> None:
    """Ask a deployed platform whether it works: health, readiness, keys, and one agent's task from end to end."""
    with remote() as settings:
        from shared.errors import InputError

        if env is not None and url is None:
            url = f"https://{_domain(env)}"
        if revisions is None:
            bad = run_async(_ask_gateway(settings, url))
        elif project_number is None:
            raise InputError("--revisions needs --project-number: the addresses of revisions are made of it")
        else:
            from shared.cli.revisions import Revisions

            bad = run_async(_ask_revisions(Revisions(revisions, project_number, settings.gcp_location)))
        if bad:
            raise typer.Exit(FAILURE)


def _domain(env: str) -> str:
    from shared.errors import InputError

    there = sorted(file.stem for file in _ENVIRONMENTS.glob("*.tfvars"))
    if env not in there:
        raise InputError(f"there is no environment {env[:40]!r}; there are {', '.join(there)}")
    found = re.search(r'^domain\s*=\s*"([^"]+)"', (_ENVIRONMENTS / f"{env}.tfvars").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise InputError(f"infra/environments/{env}.tfvars has no domain; add it, or give --url")
    return found[1]


async def _ask_gateway(settings: "Settings", url: str | None) -> int:
    from shared.cli.client import open_gateway
    from shared.errors import AgentTeamError

    bad = 0
    async with open_gateway(settings, url) as gateway:
        for name, check in (("health", _health), ("readiness", _readiness), ("one task", _task)):
            try:
                found = await check(gateway)
            except AgentTeamError as error:
                bad += 1
                typer.echo(f"BAD {name}: {error}")
            else:
                typer.echo(f"ok  {name}: {found}")
    return bad


async def _health(gateway: "Gateway") -> str:
    answer = await gateway.ask("GET", "/health")
    with gateway.understood():
        return f"{answer['status']}, up for {float(answer['uptime']):.0f} s"


async def _readiness(gateway: "Gateway") -> str:
    answer = await gateway.ask("GET", "/health/ready")
    with gateway.understood():
        return ", ".join(f"{name} {found}" for name, found in answer["checks"].items())


async def _task(gateway: "Gateway") -> str:
    from shared.errors import GatewayUnavailable

    asked = {
        "input": {"ticket": _TICKET, "draft": {}, "decision": {}},
        "budget": {"max_cost_usd": 0.1, "deadline_seconds": _WAIT_SECONDS},
    }
    answer = await gateway.ask("POST", "/v1/agents/triager/tasks", body=asked, repeatable=False)
    with gateway.understood():
        workflow = str(answer["id"])
    waited = 0.0
    while waited < _WAIT_SECONDS:
        state = await gateway.ask("GET", f"/v1/workflows/{workflow}")
        with gateway.understood():
            status = state["status"]
            if status == "SUCCESS":
                return f"{workflow} done"
            if status in ("FAILED", "CANCELLED"):
                raise GatewayUnavailable(f"{workflow} is {status}; agent-team show {workflow} tells why")
        await gateway.clock.sleep(_LOOK_SECONDS)
        waited += _LOOK_SECONDS
    raise GatewayUnavailable(f"{workflow} has not ended within {_WAIT_SECONDS:g} s; agent-team show {workflow} tells where it is")


async def _ask_revisions(revisions: "Revisions") -> int:
    import httpx

    bad = 0
    async with httpx.AsyncClient() as http:
        async for name, problem in revisions.ask(http):
            bad += problem is not None
            typer.echo(f"ok  {name}" if problem is None else f"BAD {name}: {problem}")
    return bad
