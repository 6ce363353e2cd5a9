"""A plan is judged before anything of it is done: valid steps within limits, or everything that is wrong with it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.messages import StepDispatched
from shared.workflows import decide, parse_definition
from shared.workflows.patterns import Completed, Expanded, Stage, expand
from shared.workflows.planning import COORDINATOR, STEP_TOKENS, Limits, problems

INJECTION = "{{ input.secret }}"
LIMITS = Limits("plan/do", ("researcher", "writer", COORDINATOR), max_steps=4, max_depth=1)
VALUES = {"goal": "Say why.", "agents": ["researcher", "writer"]}


def step(name: str, *needs: str, agent: str = "researcher", **more: Any) -> dict[str, Any]:
    return {"id": name, "agent": agent, "input": {"question": "Why?"}, "needs": list(needs), **more}


def plan(*steps: Any, **more: Any) -> dict[str, Any]:
    return {"steps": list(steps), **more}


def judged(
    answer: Any, *, returned: bool = False, remaining: Mapping[str, Any] | None = None, **values: Any
) -> Expanded | Completed:
    stage = Stage(
        "p/do",
        {**VALUES, **values},
        state={"returned": returned},
        upstream={"p/plan": answer},
        remaining={} if remaining is None else remaining,
    )
    return expand("plan", stage)


def expanded(outcome: Expanded | Completed) -> Expanded:
    assert isinstance(outcome, Expanded)
    return outcome


def ids(outcome: Expanded | Completed) -> list[tuple[str, str]]:
    return [(child["id"], child["agent"]) for child in expanded(outcome).children]


def command(child: Mapping[str, Any], upstream: Mapping[str, Any], **remaining: Any) -> dict[str, Any]:
    """The command that dispatches a child, once what it needs has ended."""
    return {
        "type": "dispatch",
        "workflow": "wf_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "step": child["id"],
        "attempt": 1,
        "deferrals": 0,
        "agent": child["agent"],
        "spec": child["spec"],
        "timeout_seconds": 300,
        "deadline": "2026-01-01T00:00:00Z",
        "remaining": remaining,
        "resumed": 0,
        "upstream": {need: upstream[need] for need in child["needs"]},
    }


# Asking


def test_a_plan_begins_with_the_coordinator_and_a_judgement() -> None:
    outcome = expanded(expand("plan", Stage("p", {**VALUES, "material": {"text": INJECTION}})))
    assert ids(outcome) == [("p/plan", COORDINATOR), ("p/do", "pattern:plan")]
    assert outcome.join == "p/do"
    asked, judge = outcome.children
    task = {"goal": "Say why.", "material": {"text": INJECTION}, "agents": ["researcher", "writer"], "max_steps": 10}
    assert asked["spec"] == {"input": task}
    assert judge["needs"] == ["p/plan"]


def test_nothing_of_goal_and_material_is_ever_a_template() -> None:
    values = {"goal": INJECTION, "agents": ["writer"], "material": [INJECTION]}
    asked, judge = expanded(expand("plan", Stage("p", values))).children
    order = decide(command(asked, {}))
    assert isinstance(order, StepDispatched)
    assert (order.input["goal"], order.input["material"]) == (INJECTION, [INJECTION])
    event = decide(command(judge, {"p/plan": plan(step("a", agent="writer", input={"x": INJECTION}))}))
    assert isinstance(event, dict)
    (worker,) = event["children"]
    order = decide(command(worker, {}))
    assert isinstance(order, StepDispatched)
    assert order.input == {"x": INJECTION}


@pytest.mark.parametrize(
    ("remaining", "most"),
    [({"steps": 5}, 3), ({"steps": 3}, 1), ({"tokens": 2500}, 2), ({"tokens": 10}, 1), ({"steps": 99}, 10), ({}, 10)],
)
def test_the_coordinator_is_told_of_no_more_steps_than_the_workflow_has_room_for(remaining: dict[str, int], most: int) -> None:
    outcome = expanded(expand("plan", Stage("p", VALUES, remaining=remaining)))
    assert outcome.children[0]["spec"]["input"]["max_steps"] == most


def test_a_workflow_without_room_for_a_plan_asks_for_none() -> None:
    with pytest.raises(InputError, match="a plan takes 3 steps at least, and the workflow has room for 2; raise max_steps"):
        expand("plan", Stage("p", VALUES, remaining={"steps": 2}))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"goal": " "}, "'goal' of pattern plan must be a text"),
        ({"goal": 7}, "must be a text"),
        ({"agents": []}, "'agents' of pattern plan must be a list of 1 to 20 different agents"),
        ({"agents": "writer"}, "a list of 1 to 20"),
        ({"agents": ["writer", "writer"]}, "different agents"),
        ({"agents": ["Writer!"]}, "different agents"),
        ({"agents": [f"a{n}" for n in range(21)]}, "a list of 1 to 20"),
        ({"agents": [COORDINATOR]}, "a list with others than coordinator, which only plans"),
        ({"max_steps": 0}, "a whole number from 1 to 100"),
        ({"max_steps": 101}, "a whole number from 1 to 100"),
        ({"max_steps": True}, "a whole number from 1 to 100"),
        ({"max_depth": 4}, "a whole number from 1 to 3"),
        ({"max_dept": 1}, "did you mean 'max_depth'?"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as refused:
        expand("plan", Stage("p", {**VALUES, **values}))
    assert reason in str(refused.value)


# Judging


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (None, ["the plan is not an object; give one with steps and result"]),
        ([], ["the plan is not an object; give one with steps and result"]),
        ({}, ["steps is not a list of at least one step; give the steps of the plan"]),
        (plan(), ["steps is not a list of at least one step; give the steps of the plan"]),
        (plan(*(step(f"s{n}") for n in range(5))), ["the plan has 5 steps, and at most 4 are allowed; plan fewer"]),
        (plan("a"), ["step 1 is not an object; give it id, agent, input, needs"]),
        (
            plan(step("a", agent="reseacher")),
            ["step 1 is for 'reseacher', which is no agent that this plan may use, did you mean 'researcher'?"],
        ),
        (
            plan(step("a", agent="judge")),
            ["step 1 is for 'judge', which is no agent that this plan may use, agents here: coordinator, researcher, writer"],
        ),
        (plan(step("a", input="why?")), ["the input of step 1 is not an object; give the fields that the agent takes"]),
        (plan(step("a", input=None)), ["the input of step 1 is not an object; give the fields that the agent takes"]),
        (
            plan(step("a b")),
            ["the id of step 1 is not 1 to 60 letters, digits, _ and - that begin with a letter or a digit; rename it"],
        ),
        (
            plan(step("_result")),
            ["the id of step 1 is not 1 to 60 letters, digits, _ and - that begin with a letter or a digit; rename it"],
        ),
        (
            plan({**step("a"), "needs": "b"}),
            ["needs of step 1 is not a list of ids; name the steps that it needs, or give an empty list"],
        ),
        (plan({**step("a"), "need": ["b"]}), ["step 1 has an unknown 'need', did you mean 'needs'?"]),
        (plan(step("a"), step("a"), step("b")), ["2 steps are called 'a'; give each an id of its own"]),
        (plan(step("first"), step("b", "frist")), ["step 'b' needs 'frist', which is not in the plan, did you mean 'first'?"]),
        (plan(step("a", "a")), ["the steps a → a need each other in a cycle; remove one of these needs"]),
        (plan(step("a"), result="b"), ["result is 'b', which is not in the plan, steps here: a"]),
        (plan(step("a"), result=7), ["result is '7', which is not in the plan, steps here: a"]),
        (plan(step("a"), outcome="a"), ["the plan has an unknown 'outcome', keys here: result, steps"]),
        (
            plan(step("a", agent=COORDINATOR)),
            ["step 'a' is a plan of its own, and no deeper plan is allowed here; let another agent do the work"],
        ),
        (
            plan(step("a", input=[]), step("b", agent="judge")),
            [
                "the input of step 1 is not an object; give the fields that the agent takes",
                "step 2 is for 'judge', which is no agent that this plan may use, agents here: coordinator, researcher, writer",
            ],
        ),
        (plan(step("a"), step("b", "a"), result="b"), []),
        (plan({"id": "a", "agent": "writer"}), []),
    ],
)
def test_everything_that_is_wrong_with_a_plan_is_said(answer: Any, wrong: list[str]) -> None:
    assert problems(answer, LIMITS) == wrong


def test_a_cycle_is_shown() -> None:
    (wrong,) = problems(plan(step("a", "b"), step("b", "a")), LIMITS)
    assert "need each other in a cycle" in wrong


@pytest.mark.parametrize(
    ("limits", "answer", "wrong"),
    [
        ({"room": 1}, plan(step("a"), step("b"), result="b"), "the plan adds 2 steps, and the workflow has room for 1; plan fewer"),
        # Outputs of several steps are gathered by one more.
        ({"room": 2}, plan(step("a"), step("b")), "the plan adds 3 steps, and the workflow has room for 2; plan fewer"),
        (
            {"tokens": 2 * STEP_TOKENS - 1},
            plan(step("a"), step("b")),
            "2 steps need 2000 tokens at least, and the workflow has 1999 left; plan fewer",
        ),
        (
            {"max_depth": 2},
            plan(step("a", agent=COORDINATOR)),
            "step 'a' is a plan of its own and has no goal; write it under input.goal",
        ),
        (
            {"max_depth": 2, "room": 3},
            plan(step("a", agent=COORDINATOR, input={"goal": "G"})),
            "the plan adds 4 steps, and the workflow has room for 3; plan fewer",
        ),
        (
            {"max_depth": 2, "max_steps": 2},
            plan(step("a"), step("b", agent=COORDINATOR, input={"goal": "G"}), result="b"),
            "the plan has 2 steps, which leaves 0 of 2 for 1 deeper plans; plan fewer steps",
        ),
        (
            {"max_depth": 2, "step": "s" * 185},
            plan(step("a", agent=COORDINATOR, input={"goal": "G"})),
            "the id of step 1 is too long so deep in the workflow; shorten it",
        ),
        ({"step": "s" * 199}, plan(step("a")), "the id of step 1 is too long so deep in the workflow; shorten it"),
    ],
)
def test_a_plan_has_to_fit_what_is_left(limits: dict[str, Any], answer: Any, wrong: str) -> None:
    assert problems(answer, replace(LIMITS, **limits)) == [wrong]


@pytest.mark.parametrize(
    "limits", [{"room": 3}, {"tokens": 2 * STEP_TOKENS}, {"step": "s" * 198}, {"max_depth": 2, "max_steps": 2}]
)
def test_a_plan_that_just_fits_is_valid(limits: dict[str, Any]) -> None:
    assert problems(plan(step("a"), step("b")), replace(LIMITS, **limits)) == []


# Carrying out


def test_a_valid_plan_becomes_its_steps() -> None:
    outcome = expanded(judged(plan(step("a"), step("b", "a", "a", agent="writer", input={"x": 1}))))
    assert ids(outcome) == [("p/do/a", "researcher"), ("p/do/b", "writer")]
    assert outcome.join == "p/do/b"
    assert outcome.children[1]["needs"] == ["p/do/a"]
    assert outcome.children[1]["spec"]["input"] == {"x": 1}
    order = decide(command(outcome.children[1], {"p/do/a": "found"}))
    assert isinstance(order, StepDispatched)
    assert (order.input, order.upstream) == ({"x": 1}, {"a": "found"})


def test_the_result_is_the_step_that_the_plan_names() -> None:
    assert expanded(judged(plan(step("a"), step("b"), result="a"))).join == "p/do/a"


def test_the_outputs_of_several_last_steps_are_gathered_by_their_ids() -> None:
    outcome = expanded(judged(plan(step("a"), step("b"), step("c", "a"))))
    gather = outcome.children[-1]
    assert (outcome.join, gather["needs"]) == ("p/do/_result", ["p/do/b", "p/do/c"])
    event = decide(command(gather, {"p/do/b": 1, "p/do/c": None}))
    assert isinstance(event, dict)
    assert (event["type"], event["output"]) == ("step.completed", {"b": 1, "c": None})


def test_an_invalid_plan_is_returned_with_its_errors() -> None:
    invalid = plan(step("a", agent="judge"))
    outcome = expanded(judged(invalid, material="m"))
    assert ids(outcome) == [("p/do/plan", COORDINATOR), ("p/do/do", "pattern:plan")]
    given = outcome.children[0]["spec"]["input"]
    assert (given["goal"], given["material"], given["plan"]) == ("Say why.", "m", invalid)
    assert given["errors"] == problems(invalid, replace(LIMITS, agents=("researcher", "writer")))
    assert outcome.children[1]["spec"]["state"] == {"returned": True}


def test_a_plan_that_is_invalid_again_fails_with_the_errors() -> None:
    with pytest.raises(
        InputError, match=r"^the plan is still invalid after it was returned: step 1 is for 'judge', which is no agent"
    ):
        judged(plan(step("a", agent="judge")), returned=True)


def test_an_invalid_plan_fails_at_once_when_there_is_no_room_to_return_it() -> None:
    with pytest.raises(InputError, match="max_steps leaves no room to return it: the plan is not an object"):
        judged("no plan", remaining={"steps": 2})


def test_no_more_errors_are_listed_than_anybody_reads() -> None:
    outcome = expanded(judged(plan(*["x"] * 25), max_steps=100))
    errors = outcome.children[0]["spec"]["input"]["errors"]
    assert (len(errors), errors[-1]) == (21, "and more")


# Depth


def test_a_step_for_the_coordinator_is_a_plan_with_what_is_left_of_the_limits() -> None:
    answer = plan(step("a"), step("deep", "a", agent=COORDINATOR, input={"goal": INJECTION}))
    agents = ["researcher", COORDINATOR]
    worker, deeper = expanded(judged(answer, agents=agents, max_depth=3, max_steps=10, material="m")).children
    assert worker["spec"]["spawn"] == {"agents": agents, "max_steps": 0, "max_depth": 2}
    assert deeper["agent"] == "pattern:plan"
    event = decide(command(deeper, {"p/do/a": "found"}))
    assert isinstance(event, dict)
    given = event["children"][0]["spec"]["input"]
    assert given == {
        "goal": INJECTION,
        "material": {"material": "m", "results": {"a": "found"}},
        "agents": agents,
        "max_steps": 8,
    }
    assert event["children"][1]["spec"]["item"]["max_depth"] == 2


def test_at_the_last_level_the_coordinator_is_not_told_of_itself() -> None:
    outcome = expanded(expand("plan", Stage("p", {**VALUES, "agents": ["writer", COORDINATOR]})))
    assert outcome.children[0]["spec"]["input"]["agents"] == ["writer"]


def test_what_the_agents_of_a_plan_spawn_is_limited_too() -> None:
    (first, _) = expanded(judged(plan(step("a"), step("b", "a")), max_depth=2, max_steps=10)).children
    assert first["spec"]["spawn"] == {"agents": ["researcher", "writer"], "max_steps": 4, "max_depth": 1}


def test_a_plan_so_deep_that_its_ids_would_be_too_long_is_refused() -> None:
    expand("plan", Stage("s" * 186, VALUES))
    with pytest.raises(InputError, match="too long for a plan under it"):
        expand("plan", Stage("s" * 187, VALUES))


# Whatever a planner answers

NAMES = st.sampled_from(["a", "b", "c", "_", "", "writer", COORDINATOR, "{{ input.x }}"]) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
STEP = st.fixed_dictionaries(
    {
        "id": st.sampled_from("abc") | JSON,
        "agent": st.sampled_from(["researcher", "writer", COORDINATOR]) | JSON,
    },
    optional={
        "input": st.just({"goal": "G"}) | JSON,
        "needs": st.lists(st.sampled_from("abc"), max_size=2) | JSON,
        "more": JSON,
    },
)
PLANS = (
    st.fixed_dictionaries({"steps": st.lists(STEP | JSON, max_size=5) | JSON}, optional={"result": st.sampled_from("abc") | JSON})
    | JSON
)


@given(
    answer=PLANS,
    returned=st.booleans(),
    depth=st.integers(1, 3),
    most=st.integers(1, 6),
    room=st.none() | st.integers(0, 20),
    tokens=st.none() | st.integers(0, 6000),
)
def test_whatever_is_answered_is_valid_steps_within_limits_or_a_named_error(
    answer: Any, returned: bool, depth: int, most: int, room: int | None, tokens: int | None
) -> None:
    agents = ["researcher", "writer", COORDINATOR]
    left = {"steps": room, "tokens": tokens}
    try:
        outcome = expanded(judged(answer, returned=returned, remaining=left, agents=agents, max_depth=depth, max_steps=most))
    except InputError:
        limits = Limits("p/do", tuple(agents), max_steps=most, max_depth=depth, room=room, tokens=tokens)
        assert problems(answer, limits)
        return
    children = {child["id"]: child for child in outcome.children}
    assert len(children) == len(outcome.children)
    assert room is None or len(children) <= room
    assert outcome.join in children
    assert {need for child in children.values() for need in child["needs"]} <= children.keys()
    TopologicalSorter({name: child["needs"] for name, child in children.items()}).prepare()
    if set(children) == {"p/do/plan", "p/do/do"} and children["p/do/plan"]["agent"] == COORDINATOR:
        assert not returned
        return
    work = [child for child in children.values() if child["id"] != "p/do/_result"]
    assert 1 <= len(work) <= most
    assert tokens is None or len(work) * STEP_TOKENS <= tokens
    below = 0
    for child in work:
        deeper = child["agent"] == "pattern:plan"
        given = child["spec"]["item"] if deeper else child["spec"]["spawn"]
        assert deeper or child["agent"] in ("researcher", "writer")
        assert given["agents"] == agents
        assert given["max_depth"] == depth - 1
        below += given["max_steps"]
        assert not deeper or (depth > 1 and given["max_steps"] >= 1)
    assert len(work) + below <= most


def test_what_the_page_shows_is_a_definition() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plans.md").read_text()
    planning, spawning = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    head = "name: shown\nversion: 1\ninput: {goal: {type: string}, brief: {type: string}}\n"
    definition = parse_definition(head + planning + spawning, file="shown.yaml", agents=("researcher", "writer", COORDINATOR))
    work, draft = definition.steps
    assert work.spec["pattern"] == "plan"
    assert draft.spec["spawn"] == {"agents": ["researcher"], "max_steps": 5, "max_depth": 1}
