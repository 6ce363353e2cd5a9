"""The agents with the offline model, and everything that is promised of an agent's folder."""

import importlib
import importlib.util
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from shared.ai import Prompt, Request, check_schema, load_prompt
from shared.ai.offline import NOTICE, OfflineModel
from shared.ai.schema import check
from shared.errors import InputError
from shared.messages import Remaining, Usage
from shared.runtime.contract import Run, Task, Team

ROOT = Path(__file__).parents[2]
AGENTS = sorted(
    path.parent.name
    for path in (ROOT / "functions").glob("*/function.yaml")
    if f"topic: agent-{path.parent.name}" in path.read_text()
)
ASKING = [agent for agent in AGENTS if (ROOT / "functions" / agent / "prompt.md").exists()]
"""Agents that ask a model."""
EXAMPLES = {path.stem: path.read_text() for path in sorted((ROOT / "examples").glob("*.md"))}
BRIEF = "The ferry to Oban was late. Nobody told the 40 passengers. Why was it late?"


@dataclass
class Colleagues:
    """A team whose model is offline, or says what it is told to say. Keeps what was asked."""

    prompt: Prompt
    task: Task
    says: Any = None
    log: logging.LoggerAdapter[logging.Logger] = field(default_factory=lambda: logging.LoggerAdapter(logging.getLogger("agent")))
    asked: list[dict[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=lambda: Usage(model_calls=1, input_tokens=30, output_tokens=12))

    async def generate(
        self, prompt: Prompt | None = None, *, values: Mapping[str, Any] | None = None, schema: Mapping[str, Any] | None = None
    ) -> Any:
        assert prompt is None
        given = self.task.input if values is None else values
        rendered = self.prompt.render(given)
        wanted = self.prompt.schema if schema is None else schema
        self.asked.append({"prompt": rendered, "values": given, "schema": wanted})
        if self.says is not None:
            return self.says
        return (await OfflineModel().generate(Request(prompt=rendered, schema=wanted, material=given))).output


def prompt_of(agent: str) -> Prompt:
    return load_prompt(ROOT / "functions" / agent / "prompt.md")


def colleagues(agent: str, given: Any, *, upstream: Mapping[str, Any] | None = None, says: Any = None) -> Colleagues:
    task = Task(
        workflow="wf_1",
        step=agent,
        attempt=1,
        input=given,
        upstream={} if upstream is None else upstream,
        deadline=datetime(2026, 1, 1, tzinfo=UTC),
        remaining=Remaining(),
    )
    return Colleagues(prompt=prompt_of(agent), task=task, says=says)


async def work(agent: str, team: Colleagues) -> Any:
    """What the agent gives back: its own code where it has any, else the model's answer."""
    if importlib.util.find_spec(f"functions.{agent}.agent") is None:
        return await team.generate()
    run = cast(Run, importlib.import_module(f"functions.{agent}.agent").run)
    return (await run(team.task, cast(Team, team))).output


async def ask(agent: str, given: Any, *, upstream: Mapping[str, Any] | None = None, says: Any = None) -> Any:
    return await work(agent, colleagues(agent, given, upstream=upstream, says=says))


async def report_on(brief: str) -> dict[str, Any]:
    """All that the team makes of a brief."""
    plan = await ask("planner", {"brief": brief})
    findings = [await ask("researcher", {"question": question, "brief": brief}) for question in plan["questions"]]
    draft = await ask("writer", {"plan": plan, "findings": findings})
    said: list[Any] = []
    for number in (1, 2):
        sides = ("for", "against")
        said += [
            await ask("critic", {"subject": draft["text"], "side": side, "round": number, "arguments": said[-2:]}) for side in sides
        ]
    verdict = await ask("judge", {"subject": draft["text"], "arguments": said})
    final = await ask("writer", {"draft": draft, "verdict": verdict})
    return {"plan": plan, "findings": findings, "draft": draft, "said": said, "verdict": verdict, "final": final}


# The team at work


@pytest.mark.parametrize("example", EXAMPLES)
async def test_the_team_makes_a_report_that_a_person_can_read(example: str) -> None:
    brief = EXAMPLES[example]
    made = await report_on(brief)
    text = made["final"]["text"]
    lines = [line for line in text.splitlines() if line.startswith("- ")]

    assert text.startswith(f"# {made['plan']['title']}\n\n{made['plan']['summary']}\n\n## ")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[-2:] == ["Open points", "Verdict"]
    assert len(headings) == len(set(headings)) >= 5
    assert text.rstrip().endswith(f"*{NOTICE}*")
    assert text.count(NOTICE) == 1
    assert len(lines) == len(set(lines)) >= 15, "no sentence stands in two sections"
    assert not [line for line in lines if line[2:] in made["plan"]["summary"]], "no sentence is in the summary and in a section"
    assert not [line for line in lines if not line.endswith((".", "?", "!", "*"))], "no sentence is cut"
    assert "{" not in text


@pytest.mark.parametrize("example", EXAMPLES)
async def test_every_finding_is_taken_from_the_brief(example: str) -> None:
    brief = EXAMPLES[example]
    found = [one["claim"] for answer in (await report_on(brief))["findings"] for one in answer["findings"]]
    assert len(set(found)) >= 20
    flat = " ".join(brief.split())
    assert not [claim for claim in found if claim not in flat]


@pytest.mark.parametrize("example", EXAMPLES)
async def test_every_question_that_the_brief_leaves_open_reaches_the_report(example: str) -> None:
    brief = EXAMPLES[example]
    asked = re.findall(r"^- (.+\?)$", brief, re.MULTILINE)
    text = (await report_on(brief))["final"]["text"]
    assert len(asked) >= 3
    assert [question for question in asked if text.count(question) == 1] == asked


async def test_even_a_word_makes_a_report() -> None:
    made = await report_on("Zanzibar")
    assert "Zanzibar" in made["final"]["text"]
    assert made["verdict"]["winner"] in ("for", "against", "tie")


# Agents, one by one


async def test_the_researcher_hands_the_question_on_as_it_was_asked() -> None:
    answer = await ask("researcher", {"question": "Why late?", "brief": BRIEF}, says={"findings": [], "gaps": ["No log."]})
    assert answer == {"question": "Why late?", "findings": [], "gaps": ["No log."]}


async def test_the_researcher_reads_the_outputs_of_the_steps_that_it_needs_with_the_brief() -> None:
    upstream = {"a": {"claim": "It was “late”."}, "gone": None}
    team = colleagues("researcher", {"question": "Why late?", "brief": BRIEF}, upstream=upstream, says={"findings": [], "gaps": []})
    await work("researcher", team)
    brief = team.asked[0]["values"]["brief"]
    assert brief.startswith(f"{BRIEF}\n\n")
    assert json.loads(brief.removeprefix(BRIEF)) == {"a": upstream["a"]}


async def test_the_writer_drafts_without_the_research_that_failed() -> None:
    team = colleagues("writer", {"plan": {"title": "T"}, "findings": [None, {"question": "Q", "findings": [], "gaps": []}]})
    await work("writer", team)
    assert team.asked[0]["values"] == {
        "stage": "draft",
        "plan": {"title": "T"},
        "findings": [{"question": "Q", "findings": [], "gaps": []}],
        "draft": {},
        "verdict": {},
    }


async def test_the_writer_revises_by_the_verdict() -> None:
    verdict = {
        "winner": "against",
        "scores": {"for": 0.2, "against": 0.9},
        "reasons": ["Thin."],
        "dissent": "Short.",
        "changes": ["Say who."],
    }
    team = colleagues("writer", {"draft": {"title": "T", "summary": "S.", "text": "# T\n\nS."}, "verdict": verdict})
    final = await work("writer", team)
    assert team.asked[0]["values"]["stage"] == "final"
    assert (final["title"], final["summary"]) == ("T", "S.")
    assert "## Open points\n\n- Say who.\n" in final["text"]
    assert "The debate went against the report; the open points above come first (0.20 for, 0.90 against)." in final["text"]
    assert "What decided it:\n\n- Thin." in final["text"]
    assert "What the other side was right about: Short." in final["text"]


async def test_a_draft_that_nobody_debated_is_final_without_a_model_call() -> None:
    draft = {"title": "T", "summary": "S", "text": "# T"}
    team = colleagues("writer", {"draft": draft, "verdict": None})
    assert await work("writer", team) == draft
    assert team.asked == []


async def test_a_critic_says_which_side_and_round_it_spoke_for() -> None:
    answer = await ask(
        "critic", {"subject": BRIEF, "side": "against"}, says={"argument": "A", "points": ["P"], "score": 0.5, "side": "for"}
    )
    assert (answer["argument"], answer["points"], answer["score"]) == ("A", ["P"], 0.5)
    answer = await ask("critic", {"subject": BRIEF, "side": "against", "round": 3})
    assert (answer["side"], answer["round"], answer["tokens"]) == ("against", 3, 42)


@pytest.mark.parametrize(("said", "conceded"), [("b", "b"), ("", None), ("a", None), ("nobody", None), (None, None)], ids=str)
async def test_a_critic_concedes_to_another_side_that_there_is_or_to_nobody(said: Any, conceded: str | None) -> None:
    given = {"subject": BRIEF, "side": "a", "sides": [{"name": "a"}, {"name": "b"}], "round": 2}
    says = {"argument": "A", "points": ["P"], "score": 0.1, "concedes_to": said}
    assert (await ask("critic", given, says=says))["concedes_to"] == conceded


async def test_a_judge_is_asked_for_a_score_of_each_side_that_argued_in_the_order_in_which_they_stand() -> None:
    arguments = [{"side": side, "round": 1, "argument": f"{side} holds.", "tokens": 7} for side in ("red", "green", "blue")]
    sides = [{"name": side} for side in ("red", "green", "blue", "silent")]
    team = colleagues("judge", {"subject": BRIEF, "sides": sides, "arguments": arguments})
    answer = await work("judge", team)
    (asked,) = team.asked
    assert list(asked["schema"]["properties"]["scores"]["properties"]) == ["red", "green", "blue"]
    assert asked["schema"]["properties"]["winner"]["enum"] == ["red", "green", "blue", "tie"]
    assert answer["scores"].keys() == {"red", "green", "blue"}
    assert answer["tokens"] == 42
    assert "tokens" not in asked["prompt"], "what a turn cost is nothing to judge by"


async def test_the_writer_is_not_sent_the_transcript() -> None:
    draft, verdict = {"title": "T", "summary": "S.", "text": "# T"}, {"winner": "a", "changes": []}
    team = colleagues("writer", {"draft": draft, "verdict": {**verdict, "transcript": [{"argument": "Long."}]}})
    assert "The debate was won by “a”." in (await work("writer", team))["text"]
    assert team.asked[0]["values"]["verdict"] == verdict


@pytest.mark.parametrize("agent", ["critic", "judge"])
async def test_arguments_come_from_the_input_and_from_needed_steps(agent: str) -> None:
    whole = {"side": "for", "round": 1, "argument": "It holds.", "points": ["P"], "score": 0.9}
    folded = {"side": "for", "round": 1, "argument": whole}
    silent = {"side": "against", "round": 1, "argument": None}
    given = {"subject": BRIEF, "side": "against", "round": 2, "arguments": [folded, silent]}
    team = colleagues(agent, given, upstream={"r1-against": {**whole, "side": "against"}, "other": {"title": "T"}, "gone": None})
    await work(agent, team)
    assert team.asked[0]["values"]["arguments"] == [whole, {**whole, "side": "against"}]


@pytest.mark.parametrize(
    ("agent", "given", "reason"),
    [
        ("planner", None, "input is not of type object"),
        ("planner", {"brief": ""}, "input.brief is shorter than 1 characters"),
        ("researcher", {"brief": BRIEF}, "input.question is missing"),
        ("researcher", "why?", "input is not of type object"),
        ("writer", {}, "input.plan is missing"),
        ("writer", "draft", "input.plan is missing"),
        ("writer", {"plan": {}, "findings": "none"}, "input.findings is not of type array"),
        ("writer", {"plan": {}}, "input.findings is not of type array"),
        ("writer", {"draft": "text", "verdict": {}}, "input.draft is not of type object"),
        ("critic", {"side": "for"}, "input.subject is missing"),
        ("critic", {"subject": BRIEF, "side": ""}, "input.side is shorter than 1 characters"),
        ("critic", {"subject": BRIEF, "side": "x" * 41}, "input.side is longer than 40 characters"),
        ("critic", {"subject": BRIEF}, "input.side is missing"),
        ("critic", {"subject": BRIEF, "side": "for", "round": 0}, "input.round is less than 1"),
        ("critic", {"subject": BRIEF, "side": "for", "arguments": "x"}, "input.arguments is not of type array"),
        ("critic", [], "input.subject is missing"),
        ("judge", {"subject": BRIEF}, "input.arguments has fewer than 1 items"),
        ("judge", {"subject": BRIEF, "arguments": [{"argument": "A"}]}, "input.arguments[0].side is missing"),
        ("judge", {"subject": BRIEF, "arguments": 7}, "input.arguments is not of type array"),
        ("judge", None, "input.subject is missing"),
        ("coordinator", {"agents": ["writer"]}, "input.goal is missing"),
        ("coordinator", {"goal": "", "agents": []}, "input.goal is shorter than 1 characters"),
        ("coordinator", {"goal": "Reach it.", "agents": []}, "input.agents has fewer than 1 items"),
        ("triager", {"ticket": "", "draft": {}, "decision": {}}, "input.ticket is shorter than 1 characters"),
    ],
)
async def test_an_input_that_an_agent_cannot_use_is_refused_before_any_call(agent: str, given: Any, reason: str) -> None:
    team = colleagues(agent, given)
    with pytest.raises(InputError) as caught:
        await work(agent, team)
    assert str(caught.value) == f"the agent's input does not fit: {reason}"
    assert team.asked == []


async def test_the_coordinator_plans_with_the_agents_that_it_may_use() -> None:
    team = colleagues("coordinator", {"goal": "Say why.", "material": BRIEF, "agents": ["researcher", "writer"], "plan": None})
    assert await work("coordinator", team) == {
        "steps": [
            {"id": "researcher", "agent": "researcher", "input": {"question": "Say why.", "brief": BRIEF}, "needs": []},
            {"id": "writer", "agent": "writer", "input": {"plan": {"title": "Say why."}}, "needs": ["researcher"]},
        ],
        "result": "writer",
    }
    (asked,) = team.asked
    told = {one["agent"]: one["takes"]["required"] for one in asked["values"]["agents"]}
    # What the writer's code makes of its input is not what a step has to give it.
    assert told == {"researcher": ["question", "brief"], "writer": ["plan"]}
    assert asked["values"]["plan"] == {}


async def test_the_coordinator_reads_the_fields_of_an_input_as_its_agent_takes_them() -> None:
    fields = [{"name": "plan", "value": '{"title": "T"}'}, {"name": "count", "value": "7"}, {"name": "why", "value": "[not json"}]
    asks = [{"name": "question", "value": "7"}]
    says = {
        "steps": [
            {"id": "w", "agent": "writer", "input": fields, "needs": []},
            {"id": "r", "agent": "researcher", "input": asks, "needs": []},
            {"id": "x", "agent": "nobody", "input": [], "needs": []},
        ],
        "result": "",
    }
    made = await ask("coordinator", {"goal": "G", "agents": ["writer", "researcher"]}, says=says)
    inputs = [{"plan": {"title": "T"}, "count": 7, "why": "[not json"}, {"question": "7"}, {}]
    assert [step["input"] for step in made["steps"]] == inputs
    assert made["result"] is None


@pytest.mark.parametrize(
    ("agents", "reason"),
    [(["nobody"], "there is no agent 'nobody'; there are: chronicler, coordinator, critic"), ("writer", "not a list of names")],
)
async def test_the_coordinator_knows_only_agents_that_are_there(agents: Any, reason: str) -> None:
    team = colleagues("coordinator", {"goal": "G", "agents": agents})
    with pytest.raises(InputError, match=reason):
        await work("coordinator", team)
    assert team.asked == []


async def test_without_a_list_the_coordinator_plans_with_everybody_but_itself() -> None:
    team = colleagues("coordinator", {"goal": "G"})
    await work("coordinator", team)
    assert sorted(one["agent"] for one in team.asked[0]["values"]["agents"]) == sorted(set(AGENTS) - {"coordinator"})


async def test_the_writer_takes_findings_from_the_steps_that_it_needs() -> None:
    found = {"question": "Q", "findings": [], "gaps": []}
    team = colleagues("writer", {"plan": {"title": "T"}}, upstream={"a": found, "b": None})
    await work("writer", team)
    assert team.asked[0]["values"]["findings"] == [found]


# What stands in an agent's folder


@pytest.mark.parametrize("agent", ASKING)
def test_a_prompt_asks_for_an_object_and_explains_each_of_its_fields(agent: str) -> None:
    prompt = prompt_of(agent)
    assert prompt.schema is not None
    check_schema(prompt.schema)
    fields = prompt.schema["properties"]
    assert set(prompt.schema["required"]) == set(fields)
    for name in fields:
        assert f"`{name}`" in prompt.text, f"{agent}/prompt.md does not explain {name}"


@pytest.mark.parametrize("agent", ASKING)
def test_a_prompt_explains_each_tool_that_its_model_may_call(agent: str) -> None:
    prompt = prompt_of(agent)
    assert prompt.tools == (("search_documents", "http_get", "calculate") if agent == "researcher" else ())
    for name in prompt.tools:
        assert f"`{name}`" in prompt.text, f"{agent}/prompt.md does not explain {name}"


@pytest.mark.parametrize("agent", ASKING)
def test_whatever_was_written_outside_the_team_is_marked_as_untrusted(agent: str) -> None:
    prompt = prompt_of(agent)
    trusted = re.sub(r"<untrusted>\n.*?\n</untrusted>", "", prompt.text, flags=re.DOTALL)
    for place in re.findall(r"\{\{ input\.(\w+) \}\}", trusted):
        # Outside the marks only what cannot be an instruction: a choice or a number.
        assert prompt.input_schema is not None
        schema = prompt.input_schema["properties"][place]
        assert "enum" in schema or schema["type"] == "integer", place
    assert "nothing inside" in re.sub(r"\s+", " ", trusted)
    assert "instruction to you" in re.sub(r"\s+", " ", trusted)


@pytest.mark.parametrize("agent", AGENTS)
def test_function_yaml_has_the_shape_that_everybody_reads(agent: str) -> None:
    described = yaml.safe_load((ROOT / "functions" / agent / "function.yaml").read_text())
    assert described.pop("description").endswith(".")
    check_schema(described.pop("input", {}))
    assert described == {
        "name": agent,
        "triggers": [{"topic": f"agent-{agent}"}],
        "memory": "512Mi",
        "timeout_seconds": 300,
        "concurrency": 8,
        "publishes": ["workflow-events"],
        # Whoever searches documents asks the gateway: no agent reaches the store.
        "secrets": [
            *(["AGENT_TEAM_API_KEY"] if agent == "researcher" else []),
            "COMM_HMAC_KEYS",
            *(["GEMINI_API_KEY"] if agent in ASKING else []),
        ],
    }


@pytest.mark.parametrize("example", EXAMPLES)
async def test_the_outputs_of_the_agents_fit_their_schemas(example: str) -> None:
    made = await report_on(EXAMPLES[example])
    for agent, outputs in (("planner", [made["plan"]]), ("writer", [made["draft"], made["final"]])):
        for output in outputs:
            schema = prompt_of(agent).schema
            assert schema is not None
            check(output, schema)
    assert len(made["plan"]["questions"]) == len(made["plan"]["sections"]) == 6
