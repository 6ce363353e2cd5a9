"""`agent-team schedules`: what starts by itself, and when."""

from typing import TYPE_CHECKING, Any

from shared.cli.loop import run_async
from shared.cli.options import KEY_HINT, Json, Url, remote

if TYPE_CHECKING:
    from shared.config import Settings

_HEADS = ("workflow", "cron (UTC)", "catch up", "next", "last run")

EPILOG = KEY_HINT


def schedules(url: Url = None, as_json: Json = False) -> None:
    """What a running platform starts by itself: when, when next, and what it started last."""
    with remote() as settings:
        run_async(_list(settings, url, as_json=as_json))


async def _list(settings: "Settings", url: str | None, *, as_json: bool) -> None:
    from shared.cli.client import open_gateway
    from shared.cli.output import say, write_json, write_table

    async with open_gateway(settings, url) as gateway:
        found = await gateway.ask("GET", "/v1/schedules")
        with gateway.understood():
            rows = [_row(one) for one in found["items"]]
            if as_json:
                write_json(found)
            elif rows:
                write_table(_HEADS, rows)
            else:
                say("there are none; give a definition in workflows/ a schedule")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    following = "-" if one["next_tick"] is None else f"{one['next_tick'][:16].replace('T', ' ')}Z"
    return (one["workflow"], one["cron"], one["catch_up"], following, one["last_run"] or "-")
