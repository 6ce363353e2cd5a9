"""What differs between two runs."""

from typing import Any

from shared.workflows import compare

USAGE = {"model_calls": 1, "input_tokens": 20, "output_tokens": 10, "cost_microdollars": 5}
NOTHING = dict.fromkeys(USAGE, 0)


def step(id: str, output: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "id": id,
        "agent": "writer",
        "status": "SUCCESS",
        "output": output,
        "usage": USAGE,
        "reused": False,
        "prompts": [],
        **more,
    }


def run(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {"id": "wf_1", "workflow": "report", "version": 1, "status": "SUCCESS", "forked_from": None, "forked_at": None}
    return {**head, "usage": USAGE, "input": {"brief": "x"}, "output": "text", "error": None, "steps": list(steps), **more}


def test_a_run_does_not_differ_from_itself_whatever_it_cost() -> None:
    found = compare(run(step("a", {"n": [1]})), run(step("a", {"n": [1]}, usage=NOTHING, reused=True)))
    assert (found["steps"], found["same_steps"]) == ([], 1)
    assert [found[name]["changes"] for name in ("input", "output", "error")] == [[], [], []]


def test_usage_stands_side_by_side() -> None:
    found = compare(run(usage=USAGE), run(usage=NOTHING, id="wf_2", forked_from="wf_1", forked_at=3))
    assert [head["usage"] for head in found["workflows"]] == [USAGE, NOTHING]
    assert found["workflows"][1]["forked_from"] == "wf_1"


def test_every_place_of_an_output_that_differs_is_named() -> None:
    old = {"title": "A", "parts": [{"n": 1}, {"n": 2}], "gone": 1, "same": None}
    new = {"title": "B", "parts": [{"n": 1}, {"n": 3}, {"n": 4}], "same": None}
    (found,) = compare(run(step("a", old)), run(step("a", new)))["steps"]
    assert found["output"] == {
        "changes": [
            {"path": "title", "values": ["A", "B"]},
            {"path": "parts[1].n", "values": [2, 3]},
            {"path": "parts[2]", "values": [None, {"n": 4}]},
            {"path": "gone", "values": [1, None]},
        ],
        "more": 0,
    }


def test_a_step_with_the_same_output_of_another_prompt_differs() -> None:
    old, new = ({"name": "writer", "version": version, "sha256": sha256} for version, sha256 in ((3, "a" * 12), (3, "b" * 12)))
    found = compare(run(step("a", 1, prompts=[old]), step("b")), run(step("a", 1, prompts=[new]), step("b")))
    assert [(one["id"], one["prompts"]) for one in found["steps"]] == [("a", [[old], [new]])]


def test_a_null_is_not_the_same_as_nothing_and_true_not_as_one() -> None:
    (found,) = compare(run(step("a", {"x": None, "y": 1})), run(step("a", {"y": True})))["steps"]
    assert [change["path"] for change in found["output"]["changes"]] == ["x", "y"]


def test_steps_of_only_one_run_and_of_another_status_differ() -> None:
    found = compare(run(step("a"), step("b")), run(step("b", status="FAILED"), step("c", usage=NOTHING)))
    assert [(one["id"], one["statuses"], one["usages"]) for one in found["steps"]] == [
        ("a", ["SUCCESS", None], [USAGE, None]),
        ("b", ["SUCCESS", "FAILED"], [USAGE, USAGE]),
        ("c", [None, "SUCCESS"], [None, NOTHING]),
    ]
    assert found["same_steps"] == 0


def test_long_values_are_shortened_and_still_compared_whole() -> None:
    old, new = "x" * 5000 + "a", "x" * 5000 + "b"
    (change,) = compare(run(output=old), run(output=new))["output"]["changes"]
    assert change["path"] == ""
    assert [len(value) for value in change["values"]] == [200, 200]


def test_of_many_changes_some_are_shown_and_the_rest_is_counted() -> None:
    found = compare(run(output=list(range(50))), run(output=list(range(1, 51))))["output"]
    assert (len(found["changes"]), found["more"]) == (20, 30)
