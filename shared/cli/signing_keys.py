"""`agent-team keys list|add|activate|retire|rotate`: the keys that sign messages, where these settings keep them."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shared.cli.loop import run_async
from shared.cli.options import Json, Verbose
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.keys import Key, KeySet
    from shared.runtime import Runtime

_T = TypeVar("_T")
_Id = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `list` shows it.")]
_COLUMNS = ("id", "state", "age", "last signed")


def list_(as_json: Json = False, verbose: Verbose = False) -> None:
    """The signing keys: what each may do, how old it is, when it last signed. Never the keys themselves."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import write_json, write_table

        found = _with(settings, _listed)
        if as_json:
            write_json({"items": found})
        else:
            write_table(_COLUMNS, [tuple("-" if one[name] is None else str(one[name]) for name in _COLUMNS) for one in found])


def add(as_json: Json = False, verbose: Verbose = False) -> None:
    """Make a signing key. It verifies; have it sign with `activate` once every process knows it."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import say

        async def make(live: "Runtime") -> tuple[str, float]:
            from shared.keys.rotation import settle_seconds

            return await live.keys.add(), settle_seconds(live.keys)

        key_id, seconds = _with(settings, make)
        _tell("added", key_id, as_json=as_json)
        say(f"in {seconds:.0f} s every process has it; then: agent-team keys activate {key_id}", style="dim")


def activate(
    key_id: _Id,
    force: Annotated[bool, typer.Option("--force", help="Even if some processes may not know the key yet.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Have a key sign. The one before it still verifies; `retire` it a day later."""
    with session(verbose=verbose) as settings:

        async def sign(live: "Runtime") -> None:
            from shared.keys.rotation import refuse_young, settle_seconds

            now = live.clock.now()
            if not force:
                refuse_young((await live.keys.read()).to_activate(key_id), now=now, settle=settle_seconds(live.keys))
            await live.keys.activate(key_id, now=now)

        _with(settings, sign)
        _tell("activated", key_id, as_json=as_json)


def retire(key_id: _Id, as_json: Json = False, verbose: Verbose = False) -> None:
    """Have a key refused, for good. `default` is the default secret, where keys are kept in a file."""
    with session(verbose=verbose) as settings:
        _with(settings, lambda live: live.keys.retire(key_id))
        _tell("retired", key_id, as_json=as_json)


def rotate(
    grace_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long the old key verifies after the new one signs.")
    ] = 24 * 3600,
    verbose: Verbose = False,
) -> None:
    """Add a key, have it sign, retire the one before it, and wait in between. Started again, it goes on where it was ended."""
    with session(verbose=verbose) as settings:
        _with(settings, lambda live: _rotated(live, grace_seconds))


async def _rotated(live: "Runtime", grace: float) -> None:
    from shared.keys.rotation import carry_on, next_step, settle_seconds

    settle = settle_seconds(live.keys)
    # What somebody left is finished, and is the rotation that was asked for.
    begins = next_step(await live.keys.read(), now=live.clock.now(), rotate=False, settle=settle, grace=grace) is None
    while (step := await carry_on(live.keys, live.clock, rotate=begins, grace=grace)) is not None:
        begins = False
        typer.echo(f"{step.action.name.lower()} {step.key_id} at {step.due.isoformat(timespec='seconds')}")
        await live.clock.sleep((step.due - live.clock.now()).total_seconds())
    typer.echo("rotated")


async def _listed(live: "Runtime") -> list[dict[str, Any]]:
    ring = live.ring
    await ring.fresh()
    held = await live.keys.read()
    now = live.clock.now()
    own = {key.id.upper() for key in held.keys}
    # Those of the environment have no age that anybody knows.
    others = [
        {"id": name.lower(), "state": state.value, "age": None, "last signed": "signs now" if state.value == "active" else None}
        for name, state in ring.states.items()
        if name not in own
    ]
    return others + [
        {
            "id": key.id,
            "state": held.state(key).value,
            "age": f"{(now - key.created_at).total_seconds() / 86_400:.1f} d",
            "last signed": _last_signed(held, key),
        }
        for key in held.keys
    ]


def _last_signed(held: "KeySet", key: "Key") -> str | None:
    """Only the active key signs, so a key has last signed when the next one began to."""
    if key.id == held.active:
        return "signs now"
    at = held.last_signed_at(key)
    return None if at is None else at.isoformat(timespec="seconds")


def _with(settings: "Settings", work: "Callable[[Runtime], Awaitable[_T]]") -> _T:
    async def run() -> _T:
        from shared.runtime import Runtime

        live = Runtime(settings, serves=("cli",))
        try:
            return await work(live)
        finally:
            await live.close()

    return run_async(run())


def _tell(what: str, key_id: str, *, as_json: bool) -> None:
    from shared.cli.output import printable, write_json

    if as_json:
        write_json({what: key_id})
    else:
        typer.echo(printable(f"{what}  {key_id}"))
