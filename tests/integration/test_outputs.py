"""Large outputs between real agents over real buses and the real state: they are kept once, pass by reference, and arrive whole."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from typer.testing import CliRunner

from functions.gateway.api import create_app
from shared.cli.app import app
from shared.clock import SystemClock
from shared.messages import SpawnedStep
from shared.outputs import INLINE_BYTES, Outputs
from shared.outputs.folder import FolderStore
from shared.references import KEY, Reference, reference
from shared.runtime import Runtime
from shared.runtime.contract import Result, Task, Team
from shared.runtime.dispatcher import Dispatcher
from shared.runtime.travel import Fork, fork
from shared.state.postgres import connected
from tests.support.apart import FailingStore, ended, working
from tests.support.doubles import WORKFLOW, RememberingBus, SkippingClock
from tests.support.live import completed, definition, live, start
from tests.support.servers import redis_server

LARGE = 100_000


def files(home: Path) -> list[Path]:
    return sorted(path for path in home.glob("outputs/??/*") if path.is_file())


async def write(task: Task, team: Team) -> Result:
    """As many characters as the input says."""
    return Result({"text": "x" * task.input["size"], "title": "a title", "items": ["one", "two"]})


async def measure(task: Task, team: Team) -> Result:
    """What it was given, by size alone."""
    given = task.input if task.input is not None else task.upstream
    return Result({"bytes": len(orjson.dumps(given)), "whole": KEY.encode() not in orjson.dumps(given)})


AGENTS = {"writer": write, "critic": measure}
PAIR = definition(
    """
    - {id: draft, agent: writer, input: {size: "{{ input.size }}"}}
    - {id: seen, agent: critic, needs: [draft], input: {draft: "{{ steps.draft.output }}", title: "a"}}
    """,
    input="{size: {type: integer, required: true}}",
    output="{{ steps.draft.output }}",
)


async def run(team: Runtime, wanted: Any = PAIR, *, size: int = LARGE, **options: Any) -> dict[str, Any]:
    await team.dispatcher("test").apply([start(wanted, input={"size": size}, **options)])
    return await ended(team)


def outputs_of(document: dict[str, Any]) -> dict[str, Any]:
    return {step["id"]: step["output"] for step in document["steps"]}


@pytest.fixture(params=["memory", "redis"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings of a bus."""
    if request.param == "memory":
        yield {}
        return
    with redis_server() as server:
        yield {"AGENT_BUS_PROVIDER": "redis", "REDIS_URL": server.url}


def peak_bytes() -> int:
    """The most memory that this process has had since `reset_peak`."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process's memory")
async def test_fifty_megabytes_pass_from_agent_to_agent(database: str, tmp_path: Path, bus: dict[str, str]) -> None:
    size = 50_000_000
    async with working(database, tmp_path, AGENTS, None, **bus) as team:
        before = reset_peak()
        began = time.monotonic()
        document = await run(team, size=size)
        seconds, copies = time.monotonic() - began, (peak_bytes() - before) / size
        assert document["status"] == "SUCCESS", document["error"]
        seen = outputs_of(document)["seen"]
        assert seen["whole"]
        assert seen["bytes"] > size
        assert len((await team.outputs.whole(document["output"]))["text"]) == size
        assert reference(document["output"]) == reference(outputs_of(document)["draft"])
    (file,) = files(tmp_path)
    assert size < file.stat().st_size < size + 1000
    assert copies < 6
    assert seconds < 10, "it takes one where nothing else runs"


async def test_a_small_output_stays_where_it_is_used(database: str, tmp_path: Path) -> None:
    async with working(database, tmp_path, AGENTS) as team:
        document = await run(team, size=INLINE_BYTES - 1000)
    assert len(document["output"]["text"]) == INLINE_BYTES - 1000
    assert files(tmp_path) == []


async def test_a_look_into_a_large_output_finds_what_is_there(database: str, tmp_path: Path) -> None:
    wanted = definition(
        """
        - {id: draft, agent: writer, input: {size: "{{ input.size }}"}}
        - {id: title, agent: critic, needs: [draft], input: {title: "{{ steps.draft.output.title }}"}}
        - {id: text, agent: critic, needs: [draft], input: "Read this: {{ steps.draft.output }}"}
        - {id: never, agent: critic, needs: [draft], when: "{{ steps.draft.output.items[5] }}", on_failure: continue, input: {}}
        - {id: each, agent: critic, needs: [draft], for_each: "{{ steps.draft.output.items }}", input: {item: "{{ item }}"}}
        """,
        input="{size: {type: integer, required: true}}",
        output="{{ steps.title.output.bytes }}: {{ steps.draft.output.title }}",
    )
    async with working(database, tmp_path, AGENTS) as team:
        document = await run(team, wanted)
        found = outputs_of(document)
    assert (document["status"], document["output"]) == ("SUCCESS", f"{len(orjson.dumps({'title': 'a title'}))}: a title")
    assert found["title"]["bytes"] == len(orjson.dumps({"title": "a title"}))
    assert found["text"]["bytes"] > LARGE
    assert found["each/1"]["bytes"] == len(orjson.dumps({"item": "two"}))
    (failed,) = [step for step in document["steps"] if step["status"] == "FAILED"]
    assert (failed["id"], failed["error"]["type"]) == ("never", "InputError")


async def test_what_fifty_steps_and_a_fork_share_is_stored_once(database: str, tmp_path: Path) -> None:
    wanted = definition(
        """
        - {id: each, agent: writer, for_each: "{{ input.sizes }}", input: {size: "{{ item }}"}}
        - {id: all, agent: critic, needs: [each], input: {all: "{{ steps.each.output }}"}}
        """,
        input="{sizes: {type: array, required: true}}",
        output="{{ steps.each.output }}",
    )
    async with working(database, tmp_path, AGENTS) as team:
        await team.dispatcher("test").apply([start(wanted, input={"sizes": [LARGE] * 50})])
        document = await ended(team)
        assert outputs_of(document)["all"]["bytes"] > 50 * LARGE
        forked = await fork(team, Fork(WORKFLOW), function="test")
        copy = await ended(team, forked["workflow"])
        assert copy["output"] == document["output"]
        assert len(await team.outputs.whole(copy["output"])) == 50
        async with connected(database) as connection:
            size = await connection.fetchval("select sum(pg_column_size(s.*)) from steps as s")
    assert len(files(tmp_path)) == 1
    assert size < LARGE, "the state holds references"


async def test_a_list_of_large_items_becomes_steps_that_each_get_theirs(database: str, tmp_path: Path) -> None:
    async def lots(task: Task, team: Team) -> Result:
        return Result([{"text": str(n) * LARGE} for n in range(5)])

    wanted = definition(
        """
        - {id: list, agent: writer, input: {}}
        - id: each
          agent: critic
          needs: [list]
          for_each: "{{ steps.list.output }}"
          input: {text: "{{ item.text }}", item: "{{ item }}"}
        """,
        input="{size: {type: integer}}",
    )
    async with working(database, tmp_path, {**AGENTS, "writer": lots}) as team:
        document = await run(team, wanted)
        async with connected(database) as connection:
            largest = await connection.fetchval("select max(length(s.spec::text)) from steps as s")
    assert document["status"] == "SUCCESS", document["error"]
    assert [one["bytes"] > 2 * LARGE and one["whole"] for one in document["output"]] == [True] * 5
    assert largest < 1000, "the children's specs hold references"


async def test_a_debate_over_a_large_text_keeps_it_once(database: str, tmp_path: Path) -> None:
    heard: list[int] = []

    async def argue(task: Task, team: Team) -> Result:
        heard.append(len(task.input["subject"]))
        return Result({"argument": "no", "points": [], "concedes_to": None, "tokens": 1})

    async def judge(task: Task, team: Team) -> Result:
        heard.append(len(task.input["subject"]))
        scores = {"for": 0.1 * len(heard), "against": 0.0}
        return Result({"scores": scores, "reasons": ["no"], "dissent": "no", "changes": [], "tokens": 1})

    wanted = definition(
        """
        - {id: draft, agent: writer, input: {size: "{{ input.size }}"}}
        - {id: debate, pattern: debate, needs: [draft], with: {subject: "{{ steps.draft.output.text }}", rounds: 2}}
        """,
        input="{size: {type: integer, required: true}}",
    )
    async with working(database, tmp_path, {"writer": write, "critic": argue, "judge": judge}) as team:
        document = await run(team, wanted, size=3_000_000)
        async with connected(database) as connection:
            longest = await connection.fetchval("select max(length(s.spec::text)) from steps as s")
    assert document["status"] == "SUCCESS", document["error"]
    assert heard
    assert set(heard) == {3_000_000}
    assert longest < INLINE_BYTES, "the state holds references"
    assert len(files(tmp_path)) == 2, "the output, and the text of it that all of them argue about"


async def test_an_input_too_large_for_a_message_goes_by_reference(database: str, tmp_path: Path) -> None:
    wanted = definition(
        """
        - {id: draft, agent: writer, input: {size: "{{ input.size }}"}}
        - {id: seen, agent: critic, needs: [draft], input: "{{ steps.draft.output.text }} and more"}
        """,
        input="{size: {type: integer, required: true}}",
    )
    async with working(database, tmp_path, AGENTS) as team:
        document = await run(team, wanted, size=2_000_000)
    assert document["output"]["bytes"] == 2_000_000 + len('" and more"')


async def test_what_a_spawned_step_is_given_may_be_large(database: str, tmp_path: Path) -> None:
    async def plan(task: Task, team: Team) -> Result:
        return Result(None, spawn=(SpawnedStep(id="a", agent="critic", input={"text": "y" * 2_000_000}),), join="a")

    wanted = definition("- {id: plan, agent: planner, input: {}}", input="{size: {type: integer}}")
    async with working(database, tmp_path, {"planner": plan, "critic": measure}) as team:
        document = await run(team, wanted)
    assert document["output"]["bytes"] > 2_000_000


# Forged references


async def test_an_agent_cannot_make_a_reference(database: str, tmp_path: Path) -> None:
    async def forge(task: Task, team: Team) -> Result:
        return Result({"deep": [{KEY: {"sha256": "0" * 64, "bytes": 1}}]})

    async with working(database, tmp_path, {"writer": forge}) as team:
        document = await run(team)
    assert document["status"] == "FAILED"
    assert document["error"]["type"] == "OutputInvalid"
    assert KEY in document["error"]["message"]


# A store that fails


async def test_a_store_that_is_down_for_a_moment_costs_no_attempt(database: str, tmp_path: Path) -> None:
    store = FailingStore(FolderStore(tmp_path / "outputs"), failures=2)
    async with working(database, tmp_path, AGENTS, outputs=Outputs(store, SkippingClock())) as team:
        document = await run(team)
    assert document["status"] == "SUCCESS"
    assert [step["attempt"] for step in document["steps"]] == [1, 1]


async def test_a_store_that_stays_down_makes_the_step_be_tried_again(database: str, tmp_path: Path) -> None:
    store = FailingStore(FolderStore(tmp_path / "outputs"), failures=5)
    async with working(database, tmp_path, AGENTS, outputs=Outputs(store, SkippingClock())) as team:
        document = await run(team)
    assert document["status"] == "SUCCESS"
    assert [step["attempt"] for step in document["steps"]] == [2, 1]
    assert len(files(tmp_path)) == 1


LOOKING = definition(
    """
    - {id: draft, agent: writer, input: {size: "{{ input.size }}"}}
    - {id: title, agent: critic, needs: [draft], input: "{{ steps.draft.output.title }}"}
    """,
    input="{size: {type: integer, required: true}}",
)


async def test_an_orchestrator_that_cannot_read_is_given_the_message_again(database: str, tmp_path: Path) -> None:
    folder = FolderStore(tmp_path / "outputs")
    down = FailingStore(folder, failures=10**6)
    async with working(database, tmp_path, {"critic": measure}, outputs=Outputs(folder, SystemClock())) as team:
        unable = Dispatcher(
            team.store, RememberingBus(), team.sender("test"), team.clock, team.cancellations, Outputs(down, SkippingClock())
        )
        await team.dispatcher("test").apply([start(LOOKING, input={"size": 1})])
        kept = await team.outputs.keep({"title": "x", "text": "y" * LARGE})
        event = {"type": "step.completed", "workflow": WORKFLOW, "step": "draft", "attempt": 1, "output": kept, "usage": {}}
        with pytest.raises(Exception, match="the store of the tests is down"):
            await unable.apply([event])
        assert outputs_of(await team.store.get(WORKFLOW))["draft"] == kept, "nothing is lost"
        await team.dispatcher("test").apply([event])
        document = await ended(team)
    assert document["status"] == "SUCCESS"


@pytest.mark.parametrize(("damage", "kind"), [("gone", "NotFound"), ("changed", "OutputDamaged")])
async def test_what_is_gone_or_changed_fails_the_step_that_needs_it(database: str, tmp_path: Path, damage: str, kind: str) -> None:
    async def spoil(task: Task, team: Team) -> Result:
        (file,) = files(tmp_path)
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes().replace(b"x", b"y"))
        return Result({"ok": True})

    wanted = definition(
        """
        - {id: draft, agent: writer, input: {size: "{{ input.size }}"}}
        - {id: between, agent: planner, needs: [draft], input: {}}
        - {id: seen, agent: critic, needs: [between, draft], input: "{{ steps.draft.output }}"}
        """,
        input="{size: {type: integer, required: true}}",
    )
    agents = {**AGENTS, "planner": spoil}
    unaided = Uncached(FolderStore(tmp_path / "outputs"), SystemClock())
    async with working(database, tmp_path, agents, outputs=unaided) as team:
        document = await run(team, wanted)
        stored = reference(outputs_of(document)["draft"])
    assert stored is not None
    assert document["status"] == "FAILED"
    error = document["error"]
    assert (error["step"], error["type"]) == ("seen", kind)
    assert stored.sha256 in error["message"]
    assert "run the workflow again" in error["message"]


class Uncached(Outputs):
    """Reads everything from its store, as another instance would."""

    def _remember(self, id: str, data: bytes) -> None:
        pass


async def test_without_a_store_a_large_output_fails_with_what_to_set(database: str, tmp_path: Path) -> None:
    async with working(database, tmp_path, AGENTS, outputs=Outputs(None, SystemClock())) as team:
        document = await run(team, size=600_000)
    assert document["status"] == "FAILED"
    assert "OUTPUTS_URL" in document["error"]["message"]
    assert "MAX_PAYLOAD_BYTES" in document["error"]["message"]


# The API


async def test_the_api_shows_what_fits_and_links_to_the_rest(database: str, tmp_path: Path) -> None:
    async with working(database, tmp_path, AGENTS) as team:
        document = await run(team)
        transport = httpx.ASGITransport(app=create_app(team))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            shown = (await client.get(f"/v1/workflows/{WORKFLOW}")).json()
            assert len(shown["output"]["text"]) == LARGE
            href = outputs_of(shown)["draft"][KEY]["href"]
            assert href == f"/v1/workflows/{WORKFLOW}/steps/draft/output"
            answer = await client.get(href)
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == shown["output"]
            assert (await client.get(f"/v1/workflows/{WORKFLOW}/output")).json() == shown["output"]
            missing = await client.get(f"/v1/workflows/{WORKFLOW}/steps/other/output")
            assert (missing.status_code, missing.json()["detail"]) == (404, f"{WORKFLOW} has no step 'other'")
    assert reference(document["output"]) is not None


async def test_an_output_too_large_to_show_is_a_link(database: str, tmp_path: Path) -> None:
    async with working(database, tmp_path, AGENTS) as team:
        await run(team, size=1_000_000)
        transport = httpx.ASGITransport(app=create_app(team))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            shown = (await client.get(f"/v1/workflows/{WORKFLOW}")).json()
            href = shown["output"][KEY]["href"]
            assert href == f"/v1/workflows/{WORKFLOW}/output"
            assert len((await client.get(href)).json()["text"]) == 1_000_000


# Results and the command line


@pytest.mark.parametrize(("size", "told"), [(70_000, True), (600_000, False)])
async def test_who_is_told_of_the_end_hears_the_output_where_it_fits(database: str, tmp_path: Path, size: int, told: bool) -> None:
    async with live(database, tmp_path) as team:
        door = team.runtime.dispatcher("test")
        await door.apply([start(PAIR, input={"size": size})])
        kept = await team.runtime.outputs.keep("x" * size)
        for step in ("draft", "seen"):
            await door.apply([completed(step, output=kept)])
        (finished,) = team.finished()
    assert (finished.status, finished.output_omitted) == ("SUCCESS", not told)
    assert finished.output == ("x" * size if told else None)


async def test_an_end_is_told_although_its_output_is_gone(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path) as team:
        door = team.runtime.dispatcher("test")
        await door.apply([start(PAIR, input={"size": 1})])
        for step in ("draft", "seen"):
            await door.apply([completed(step, output=Reference("0" * 64, 70_000).as_json())])
        (finished,) = team.finished()
    assert (finished.status, finished.output_omitted) == ("SUCCESS", True)


def test_show_prints_everything_whole(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def once() -> None:
        async with working(database, tmp_path, AGENTS) as team:
            await run(team)

    asyncio.run(once())
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("AGENT_TEAM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["show", WORKFLOW, "--json"], prog_name="agent-team")
    assert result.exit_code == 0, result.output
    shown = orjson.loads(result.stdout)
    assert len(shown["output"]["text"]) == LARGE
    assert outputs_of(shown)["draft"] == shown["output"]
