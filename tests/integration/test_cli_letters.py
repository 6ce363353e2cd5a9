"""`agent-team dead-letters`, over the database and over a gateway."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from functions.gateway.api import create_app
from shared.bus import Delivery, Message
from shared.cli import app as cli_app
from shared.config import Settings
from shared.local.server import bind, serve
from shared.messages import StepCompleted
from shared.runtime import Runtime, load
from tests.support.doubles import SECRET, WORKFLOW, RememberingBus, signed

Run = Callable[..., Result]


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> RememberingBus:
    """What AGENT_BUS_PROVIDER=redis opens here."""
    remembering = RememberingBus()
    monkeypatch.setattr("shared.runtime.wiring.open_bus", lambda *_arguments, **_more: remembering)
    return remembering


@pytest.fixture
def run(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `agent-team dead-letters` in this process, on a database of the test's own."""
    monkeypatch.chdir(tmp_path)
    variables = {
        **{"AGENT_TEAM_HOME": str(tmp_path / "home"), "DATABASE_URL": database, "COMM_HMAC_DEFAULT_SECRET": SECRET},
        **{"AGENT_BUS_PROVIDER": "redis", "REDIS_URL": "redis://127.0.0.1:1/0", "GUARDS_BACKEND": "memory"},
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    level = logging.getLogger().level

    def invoke(*arguments: object, **environment: str) -> Result:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        words = ["dead-letters", *(str(argument) for argument in arguments)]
        return CliRunner().invoke(cli_app.app, words, prog_name="agent-team")

    yield invoke
    logging.getLogger().setLevel(level)


def apart(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


@pytest.fixture
def letters(database: str, tmp_path: Path) -> int:
    """Three lost replies and a message that nobody signed: letters 1 to 4."""

    async def record() -> None:
        live = runtime(database, tmp_path)
        handler = load("dead_letter").handlers(live)["dead-letters"]
        source = {"CloudPubSubDeadLetterSourceSubscription": "workflow-events.orchestrator"}
        messages: Sequence[Message] = [
            *(signed(reply(number), "workflow-events", live.clock, id=f"reply {number}") for number in range(3)),
            Message("workflow-events", b"\x1b[31mred"),
        ]
        for message in messages:
            attributes = {**message.attributes, **source}
            await handler(Delivery("dead-letters.dead_letter", "dead-letters", message.data, attributes, "77", 1))
        await live.close()

    apart(record)
    return 4


def reply(number: int) -> StepCompleted:
    return StepCompleted(workflow=WORKFLOW, step=f"draft/{number}", attempt=1, output="confidential")


def runtime(database: str, home: Path) -> Runtime:
    given = Settings(app_env="test", comm_hmac_default_secret=SECRET, database_url=database, agent_team_home=home)
    return Runtime(given, bus=RememberingBus())


@contextmanager
def gateway(database: str, home: Path) -> Iterator[str]:
    """A gateway on a port of its own, in a thread of its own."""
    listening, started = bind("127.0.0.1", 0), threading.Event()
    loop = asyncio.new_event_loop()

    async def work() -> None:
        live = runtime(database, home)
        try:
            await serve(create_app(live), listening, on_started=started.set)
        finally:
            await live.close()

    task = loop.create_task(work())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
    thread.start()
    try:
        assert started.wait(60)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(60)
        loop.close()
        listening.close()


@pytest.fixture(params=["database", "gateway"])
def where(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The options that lead to the letters."""
    if request.param == "database":
        yield ()
    else:
        with gateway(database, tmp_path) as url:
            yield ("--url", url)


def refused(result: Result, part: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert part in result.stderr


def test_letters_are_listed_newest_first(run: Run, letters: int, where: tuple[str, ...]) -> None:
    listed = run("list", *where)
    assert (listed.exit_code, listed.stderr) == (0, "")
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["4", "3", "2", "1"]
    assert "rejected:key" in lines[0]
    assert "workflow-events.orchestrator  reply 0  timeout  no delivery said why" in lines[3]
    assert "confidential" not in listed.stdout


def test_the_list_is_filtered_and_paged(run: Run, letters: int, where: tuple[str, ...]) -> None:
    page = json.loads(run("list", "--json", "--cause", "timeout", "--limit", 2, *where).stdout)
    assert ([one["id"] for one in page["items"]], page["next_cursor"]) == ([3, 2], 2)
    rest = run("list", "--cause", "timeout", "--limit", 1, "--cursor", 3, *where)
    assert rest.stdout.startswith("2 ")
    assert rest.stderr == "there are more: --cursor 2\n"
    none = run("list", "--since", "2999-01-01", "--state", "again", "--workflow", WORKFLOW, *where)
    assert (none.stdout, none.stderr) == ("", "there are none\n")


def test_a_letter_is_shown_without_its_data_unless_asked_for(run: Run, letters: int, where: tuple[str, ...]) -> None:
    shown = run("show", 1, *where)
    assert shown.exit_code == 0, shown.output
    assert "message_id: reply 0" in shown.stdout
    assert "data: -" in shown.stdout
    assert "confidential" not in shown.stdout
    assert '"output":"confidential"' in run("show", 1, "--data", *where).stdout
    assert "data: [31mred" in run("show", 4, "--data", *where).stdout
    assert json.loads(run("show", 1, "--json", *where).stdout)["cause"] == "timeout"
    refused(run("show", 9, *where), "there is no dead letter 9")


def test_a_redrive_tells_first_and_acts_on_yes(run: Run, letters: int, where: tuple[str, ...], bus: RememberingBus) -> None:
    dry = run("redrive", *where)
    assert dry.exit_code == 0, dry.output
    assert dry.stdout.splitlines()[0] == "would redrive 3 of 4 dead letters: 3, 2, 1"
    assert "left as it is: 4: it cannot be trusted (key)" in dry.stdout
    assert dry.stderr == "nothing was sent; the same with --yes does it, 10 per second\n"
    assert bus.published == []

    done = run("redrive", "--cause", "timeout", "--yes", "--rate", 100, "--json", *where)
    outcome = json.loads(done.stdout)
    assert (outcome["matched"], outcome["redriven"], outcome["ids"], outcome["dry_run"]) == (3, 3, [3, 2, 1], False)
    if not where:
        assert [message.attributes["redrive-message-id"] for message in bus.published] == ["reply 2", "reply 1", "reply 0"]
    assert run("redrive", "--cause", "timeout", *where).stdout == "would redrive 0 of 0 dead letters\n"


def test_a_named_letter_that_is_refused_is_a_failure(run: Run, letters: int, where: tuple[str, ...], bus: RememberingBus) -> None:
    result = run("redrive", 1, 4, 9, "--yes", *where)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "redriven: 1 of 2 dead letters: 1"
    assert "left as it is: 9: there is no such dead letter" in result.stdout
    assert run("redrive", 1, "--again", "--yes", *where).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("list", "--state", "gone"), "there are waiting, redriven and again"),
        (("list", "--since", "yesterday"), "write it like 2026-01-31T12:00Z"),
        (("redrive", 1, "--cause", "store"), "give IDs or a filter, not both"),
        (("redrive", "--rate", 0), "letters per second is not possible"),
        (("list", "--url", "127.0.0.1:8080"), "is not an address"),
        (("list", "--url", "http://127.0.0.1:1"), "cannot be reached (connection refused)"),
        (("list", "--url", "http://[::1"), "is not an address"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(run: Run, arguments: tuple[object, ...], part: str) -> None:
    refused(run(*arguments), part)


def test_the_bus_of_another_process_is_reached_over_its_gateway(run: Run, letters: int) -> None:
    result = run("redrive", "--yes", AGENT_BUS_PROVIDER="memory")
    refused(result, "--url http://127.0.0.1:8080")
    assert run("redrive", AGENT_BUS_PROVIDER="memory").exit_code == 0


def test_a_database_without_the_schema_says_to_migrate(run: Run, empty_database: str) -> None:
    refused(run("list", DATABASE_URL=empty_database), "run `agent-team migrate`")


def test_more_letters_than_one_page_are_all_redriven(
    run: Run, letters: int, where: tuple[str, ...], bus: RememberingBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.cli.letters.PAGE", 2)
    outcome = json.loads(run("redrive", "--yes", "--rate", 100, "--json", *where).stdout)
    assert (outcome["matched"], outcome["ids"], [one["id"] for one in outcome["refused"]]) == (4, [3, 2, 1], [4])
