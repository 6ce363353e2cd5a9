"""A brief goes in, a report comes out: through every function, with real SQL, signed messages and the offline model."""

from pathlib import Path
from typing import Any

import pytest

from shared.ai.offline import NOTICE, OfflineModel
from shared.bus import Delivery, Outcome, Subscription
from shared.errors import ModelRefused
from shared.messages import WorkflowFinished, WorkflowRequested, open_envelope
from tests.support.doubles import MAX_BYTES, CountingModel, ScriptedModel
from tests.support.reports import outputs, platform, write_reports

EXAMPLES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[2] / "examples").glob("*.md"))}
ENDINGS = ("workflow.succeeded", "workflow.failed", "workflow.cancelled")


@pytest.mark.parametrize("brief", EXAMPLES.values(), ids=EXAMPLES)
async def test_a_brief_becomes_a_debated_report(brief: str, database: str, tmp_path: Path) -> None:
    model = CountingModel(OfflineModel())
    async with platform(database, tmp_path, model=model) as opened:
        (workflow,) = await write_reports(opened, [brief])
        history = await opened.runtime.store.history(workflow["id"])
    assert (workflow["status"], workflow["error"]) == ("SUCCESS", None)
    assert {step["status"] for step in workflow["steps"]} == {"SUCCESS"}

    said = outputs(workflow)
    assert len(said["research"]) == len(said["plan"]["questions"])
    assert [one["question"] for one in said["research"]] == said["plan"]["questions"]
    critics = [one for one in workflow["steps"] if one["agent"] == "critic"]
    assert {(one["output"]["side"], one["output"]["round"]) for one in critics} == {
        ("for", 1),
        ("against", 1),
        ("for", 2),
        ("against", 2),
    }
    assert said["debate"]["winner"] in ("for", "against", "tie")
    assert workflow["output"] == said["final"]
    assert workflow["output"]["text"].startswith("# ")
    assert NOTICE in workflow["output"]["text"]

    assert workflow["usage"]["model_calls"] == len(model.prompts) == sum(step["usage"]["model_calls"] for step in workflow["steps"])
    assert len(set(model.prompts)) == len(model.prompts)
    types = [entry["type"] for entry in history]
    assert types[:2] == ["workflow.requested", "workflow.started"]
    assert [one for one in types if one in ENDINGS] == [types[-1]] == ["workflow.succeeded"]
    assert types.count("step.completed") == len(workflow["steps"])
    assert [entry["seq"] for entry in history] == list(range(1, len(history) + 1))


async def test_the_result_is_told_on_the_bus_signed_and_once(database: str, tmp_path: Path) -> None:
    told: list[WorkflowFinished] = []
    async with platform(database, tmp_path) as opened:
        live = opened.runtime

        async def note(delivery: Delivery) -> Outcome:
            envelope = open_envelope(
                delivery.topic, delivery.data, delivery.attributes, ring=live.ring, now=live.clock.now(), max_bytes=MAX_BYTES
            )
            assert isinstance(envelope.data, WorkflowFinished)
            told.append(envelope.data)
            return Outcome.ACK

        await live.bus.subscribe(Subscription("witness", "workflow-results"), note)
        (workflow,) = await write_reports(opened, [EXAMPLES["product-brief"]])
    (finished,) = told
    assert (finished.workflow, finished.name, finished.status) == (workflow["id"], "report", "SUCCESS")
    assert finished.output == workflow["output"]
    assert finished.usage.model_dump() == workflow["usage"]


async def test_the_same_brief_gives_the_same_report(database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path) as opened:
        first, second = await write_reports(opened, [EXAMPLES["product-brief"]] * 2)
    assert first["id"] != second["id"]
    assert outputs(first) == outputs(second)


async def test_a_report_holds_the_words_of_its_brief_and_no_others(database: str, tmp_path: Path) -> None:
    harbour = (
        "The Vexlorian ferry missed its quombat slot at Skarholm on 3 May. The glimber winch jammed after 41 hours without grease. "
        "Nobody had told the drosk crew that the zephrine valve was closed. We propose a second glimber winch before the autumn."
    )
    bakery = (
        "Our sourdough mivlets sold out by nine on every Saturday in June. The plonquil oven needs 90 minutes to reach heat. "
        "Two apprentices, Oda and Trebble, asked for an earlier start. A third tray costs 310 euros and pays back in five weeks."
    )
    async with platform(database, tmp_path) as opened:
        about_harbour, about_bakery = (one["output"]["text"] for one in await write_reports(opened, [harbour, bakery]))
    assert all(word in about_harbour for word in ("Vexlorian", "glimber", "zephrine"))
    assert all(word in about_bakery for word in ("mivlets", "plonquil", "Trebble"))
    assert "glimber" not in about_bakery
    assert "mivlets" not in about_harbour


@pytest.mark.parametrize(
    ("answer", "error"),
    [(ModelRefused("the key is wrong; check GEMINI_API_KEY"), "ModelRefused"), ({"no": "questions"}, "InputError")],
)
async def test_a_model_that_is_of_no_use_fails_the_workflow_and_says_why(
    answer: Any, error: str, database: str, tmp_path: Path
) -> None:
    async with platform(database, tmp_path, model=ScriptedModel(answer)) as opened:
        (workflow,) = await write_reports(opened, [EXAMPLES["product-brief"]])
    assert (workflow["status"], workflow["error"]["type"]) == ("FAILED", error)
    assert {step["status"] for step in workflow["steps"]} <= {"SUCCESS", "FAILED", "CANCELLED"}


async def test_a_budget_that_is_used_up_ends_the_workflow(database: str, tmp_path: Path) -> None:
    request = {"workflow": "report", "input": {"brief": EXAMPLES["product-brief"]}, "budget": {"max_tokens": 10}}
    async with platform(database, tmp_path) as opened:
        workflow = await opened.submit(WorkflowRequested.model_validate(request))
        ended = [entry async for entry in opened.follow(workflow)][-1]
    assert ended["type"] == "workflow.failed"
    assert ended["data"]["type"] == "BudgetExceeded"
