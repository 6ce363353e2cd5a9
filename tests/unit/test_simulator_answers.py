"""What the simulated Gemini understands of the team's prompts, and how it fills what it is asked for."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from shared.ai.prompts import load_prompt
from shared.ai.schema import check
from shared.local.simulator import answers
from shared.local.simulator.asked import read
from shared.local.simulator.schemas import plain

FUNCTIONS = Path(__file__).parents[2] / "functions"
BRIEF = "# The ferry\n\nThe ferry was late on Monday.\n\nThe crew had 3 people instead of 5.\n"
SIDES = [{"name": "for", "position": "The answer is yes."}, {"name": "against", "position": "The answer is no."}]
QUESTION = "Should this text stand as it is?"
NOTES = "[14:06] ann: The deploy broke the pool because it had no limit.\n[14:20] ann: We must add an alert."
ARGUMENT = {"side": "for", "round": 1, "argument": "It can stand.", "points": ["It names 3 people."], "score": 0.5}
VALUES: dict[str, dict[str, Any]] = {
    "planner": {"brief": BRIEF},
    "researcher": {"question": "Why was the ferry late?", "brief": BRIEF},
    "writer": {
        "plan": {"title": "The ferry", "questions": ["Why?"], "sections": ["Reasons"]},
        "findings": [{"question": "Why?", "findings": [], "gaps": ["Who decides?"]}],
        "draft": {},
        "verdict": {},
    },
    "critic": {
        "question": QUESTION,
        "subject": BRIEF,
        "sides": SIDES,
        "side": "against",
        "round": 2,
        "arguments": [ARGUMENT],
    },
    "triager": {"ticket": BRIEF, "draft": {}, "decision": {}},
    "judge": {
        "question": QUESTION,
        "subject": BRIEF,
        "sides": SIDES,
        "rubric": ["What is checked counts."],
        "arguments": [ARGUMENT, {**ARGUMENT, "side": "against"}],
    },
    "coordinator": {
        "goal": "Say why.",
        "material": BRIEF,
        "agents": [
            {"agent": "researcher", "does": "Answers.", "takes": {"required": ["question"], "properties": {"question": {}}}}
        ],
        "max_steps": 4,
        "plan": {"steps": [], "result": None},
        "errors": ["the plan has no steps"],
    },
    "chronicler": {"notes": NOTES, "service": "ferry", "severity": ""},
    "investigator": {"notes": NOTES, "moments": [{"time": "14:06", "what": "It left.", "quote": "It left"}], "angle": "recovery"},
    "scribe": {"record": {"title": "The ferry", "moments": []}, "critique": {}, "comment": "Say who."},
    "reviewer": {"path": "a.py", "patch": "@@ f\n     1 + print(1)", "about": {"title": "A"}, "guidelines": ""},
    "editor": {"about": {}, "changed": [{"path": "a.py", "added": 1, "removed": 0, "reviewed": True}], "findings": []},
}


def rendered(agent: str) -> str:
    stage = {"stage": "draft"} if agent == "writer" else {}
    return load_prompt(FUNCTIONS / agent / "prompt.md").render({**VALUES[agent], **stage})


@pytest.mark.parametrize("agent", VALUES)
def test_the_parts_of_an_agent_s_prompt_are_read_for_what_they_are(agent: str) -> None:
    assert answers.read(rendered(agent)).values == VALUES[agent]


@pytest.mark.parametrize("agent", VALUES)
def test_an_agent_s_prompt_is_answered_with_what_its_own_schema_takes(agent: str) -> None:
    schema = load_prompt(FUNCTIONS / agent / "prompt.md").schema
    assert schema is not None
    config = {"responseMimeType": "application/json", "responseJsonSchema": without_lengths(schema)}
    body = {"contents": [{"parts": [{"text": rendered(agent)}]}], "generationConfig": config}
    asked = read(orjson.dumps(body), "gemini-2.5-pro")

    output = orjson.loads(answers.write(asked, answers.read(asked.prompt)))

    # Also the bounds of texts, which never reached it.
    check(output, schema)


def without_lengths(value: Any) -> Any:
    """A schema as it is sent: Gemini takes no bounds of texts."""
    if not isinstance(value, dict):
        return value
    return {name: without_lengths(child) for name, child in value.items() if name not in ("minLength", "maxLength")}


def test_a_prompt_without_marks_is_one_text() -> None:
    material = answers.read("Why was the ferry late? The crew had 3 people.")

    assert material.values == {"prompt": "Why was the ferry late? The crew had 3 people."}


def test_a_part_whose_kind_nobody_tells_is_a_text_like_any_other() -> None:
    material = answers.read("Look:\n\n<untrusted>\n{not json\n</untrusted>\n\nAnd:\n\n<untrusted>\n[1]\n</untrusted>\n")

    assert material.values == {"text0": "{not json", "text1": [1]}


def test_a_schema_is_made_plain() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "kind": {"const": "leaf"}}}
    sent = {
        "$defs": {"node": node},
        "type": "OBJECT",
        "properties": {
            "tree": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            "points": {"type": "ARRAY", "minItems": "2", "items": {"type": "STRING"}},
            "text": {"type": "STRING"},
            "note": {"type": ["string", "null"]},
        },
    }

    made = plain(sent)

    properties = made["properties"]
    assert made["type"] == "object"
    assert properties["tree"]["properties"]["kind"] == {"enum": ["leaf"]}
    assert properties["points"] == {"type": "array", "minItems": 2, "items": {"type": "string", "maxLength": 250}}
    assert properties["text"] == {"type": "string"}
    assert properties["note"] == {"type": ["string", "null"]}


def test_a_schema_that_refers_to_itself_comes_to_an_end() -> None:
    made = plain({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})

    assert made == {}
