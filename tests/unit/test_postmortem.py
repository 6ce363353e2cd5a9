"""Postmortems: nothing that the notes do not hold, and everything that the offline model can find in them."""

from typing import Any

import pytest

from shared.ai.offline.incident import ANGLES, told
from shared.errors import InputError
from tests.support.library import ROOT
from tests.unit.test_agents import ask, colleagues, work

CHAT = (ROOT / "examples" / "incident-chat.txt").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "examples" / "incident-notes.md").read_text(encoding="utf-8")
NOTES = "[09:02] bot: 7.3.0 is live\n[09:20] ann: no photo was lost"
GIVEN = {"notes": NOTES, "service": "media-api", "severity": "SEV2"}
TIMELINE = {
    "title": "Uploads failed",
    "service": "media-api",
    "severity": "SEV2",
    "impact": [{"statement": "Nothing was lost.", "quote": "no photo was lost"}],
    "moments": [{"time": "09:02", "what": "7.3.0 is live", "quote": "7.3.0 is live"}],
    "went_well": [],
    "dropped": 0,
}
ACTION = {"action": "Add | limits", "owner": "", "priority": "low", "quote": "limits"}
CAUSES = {
    "angle": "trigger",
    "causes": [{"statement": "A release.", "certainty": "suspected", "quote": "7.3.0 is live"}],
    "actions": [ACTION, {**ACTION, "action": "Page", "owner": "ann", "priority": "high"}],
    "unknown": ["Who?"],
}
SAYS = {"title": "T", "summary": "S.", "open_questions": ["Who?"], "caveats": ""}


async def test_what_the_chronicler_quotes_and_the_notes_do_not_hold_is_dropped() -> None:
    says = {
        "title": "T",
        "impact": [{"statement": "Lost.", "quote": "photos were lost"}, {"statement": "Not lost.", "quote": "No photo was lost."}],
        "moments": [
            {"time": "09:02", "what": "Live.", "quote": "7.3.0 is live"},
            {"time": "09:03", "what": "M.", "quote": "made up"},
        ],
        "went_well": [{"statement": "All.", "quote": ""}],
    }
    answer = await ask("chronicler", GIVEN, says=says)
    assert [one["statement"] for one in answer["impact"]] == ["Not lost."]
    assert [one["what"] for one in answer["moments"]] == ["Live."]
    assert (answer["went_well"], answer["dropped"]) == ([], 3)
    assert (answer["service"], answer["severity"]) == ("media-api", "SEV2")


async def test_what_the_investigator_quotes_is_looked_for_and_owners_are_those_of_the_notes() -> None:
    cause = {"statement": "S.", "certainty": "stated"}
    says = {
        "causes": [{**cause, "quote": "7.3.0"}, {**cause, "quote": "8.0"}],
        "actions": [{**ACTION, "quote": "is live", "owner": owner} for owner in ("ann", "bob", "")]
        + [{**ACTION, "quote": "no such"}],
        "unknown": ["Who?"],
    }
    answer = await ask("investigator", {"angle": "spread", "notes": NOTES, "moments": []}, says=says)
    assert [one["quote"] for one in answer["causes"]] == ["7.3.0"]
    assert [one["owner"] for one in answer["actions"]] == ["ann", "", ""]
    assert (answer["angle"], answer["unknown"]) == ("spread", ["Who?"])


async def test_the_scribe_puts_the_facts_into_the_text_itself() -> None:
    team = colleagues("scribe", {"timeline": TIMELINE, "causes": [CAUSES, None, {**CAUSES, "angle": "spread"}]}, says=SAYS)
    output = await work("scribe", team)
    assert [one["action"] for one in output["actions"]] == ["Page", "Add | limits"]
    assert output["unknown"] == ["Who?"]
    assert output["text"] == "\n".join(
        [
            "# Postmortem: T",
            "",
            "**Service:** media-api · **Severity:** SEV2",
            "",
            "## Summary",
            "",
            "S.",
            "",
            "## Impact",
            "",
            "- Nothing was lost. (“no photo was lost”)",
            "",
            "## Timeline",
            "",
            "- **09:02** “7.3.0 is live”",
            "",
            "## Contributing causes",
            "",
            "### What set it off",
            "",
            "- A release. (“7.3.0 is live”) *(suspected)*",
            "",
            "### Why it became as large",
            "",
            "- A release. (“7.3.0 is live”) *(suspected)*",
            "",
            "### Why it was noticed when it was",
            "",
            "The notes say nothing about this.",
            "",
            "### Why it took as long to end",
            "",
            "The notes say nothing about this.",
            "",
            "## What went well",
            "",
            "The notes say nothing about this.",
            "",
            "## Action items",
            "",
            "| priority | action | owner |",
            "| --- | --- | --- |",
            "| high | Page (“limits”) | ann |",
            "| low | Add \\| limits (“limits”) | *nobody yet* |",
            "",
            "## What is not known",
            "",
            "- Who?",
            "",
        ]
    )


async def test_a_critique_and_a_comment_are_told_and_the_facts_stay() -> None:
    draft = await ask("scribe", {"timeline": TIMELINE, "causes": [CAUSES]}, says=SAYS)
    team = colleagues("scribe", {"draft": draft, "critique": {"points": ["Thin."]}}, says={**SAYS, "summary": "Better."})
    revised = await work("scribe", team)
    assert team.asked[0]["values"]["critique"] == {"points": ["Thin."]}
    assert "text" not in team.asked[0]["values"]["record"]
    assert revised == {**draft, "summary": "Better.", "text": draft["text"].replace("S.", "Better.")}
    team = colleagues("scribe", {"draft": draft, "decision": {"decision": "approve", "comment": "Shorter."}}, says=SAYS)
    await work("scribe", team)
    assert team.asked[0]["values"]["comment"] == "Shorter."


@pytest.mark.parametrize(
    ("decision", "text"), [(None, None), ({"decision": "approve"}, None), ({"decision": "amend", "value": "# Mine"}, "# Mine")]
)
async def test_what_was_decided_asks_no_model(decision: Any, text: str | None) -> None:
    draft = await ask("scribe", {"timeline": TIMELINE, "causes": [CAUSES]}, says=SAYS)
    team = colleagues("scribe", {"draft": draft, "decision": decision})
    assert await work("scribe", team) == ({**draft, "text": text} if text else draft)
    assert team.asked == []


@pytest.mark.parametrize(
    "given", [{}, None, {"draft": {}}, {"timeline": TIMELINE}, {"draft": {"text": "x"}, "decision": {"value": {"text": "y"}}}]
)
async def test_what_is_no_work_for_the_scribe_is_refused(given: Any) -> None:
    with pytest.raises(InputError):
        await ask("scribe", given)


# Without a model


def by_angle(notes: str) -> dict[str, Any]:
    return {angle: told({"notes": notes, "angle": angle}) for angle in ANGLES}


def test_a_chat_log_has_its_moments_without_chatter_and_without_looking_back() -> None:
    moments = told({"notes": CHAT})["moments"]
    times = [one["time"] for one in moments]
    assert times == sorted(times)
    assert (times[0], times[-1], len(times)) == ("09:02", "10:31", 16)
    assert not {"09:20", "09:29", "09:38"} & set(times), "chatter and questions are left out"
    assert moments[0]["what"].startswith("media-api 7.3.0 is live"), "who said it is no part of it"


def test_a_protocol_has_its_moments_too() -> None:
    moments = told({"notes": PROTOCOL})["moments"]
    assert len(moments) == PROTOCOL.count("\n- 1") == 9
    assert moments[3] == {
        "time": "14:11",
        "what": 'Tomasz Wieczorek sees 400 of 400 PgBouncer connections in use, most of them "idle in transaction".',
        "quote": 'Tomasz Wieczorek sees 400 of 400 PgBouncer connections in use, most of them "idle in transaction".',
    }


@pytest.mark.parametrize(
    "line",
    [
        "[14:06] ann: The pool was exhausted by retries",
        "14:06 ann: The pool was exhausted by retries",
        "- 14:06 The pool was exhausted by retries",
        "* 14:06 | The pool was exhausted by retries",
        "2026-03-11T14:06 ann: The pool was exhausted by retries",
        "[2026-03-11 14:06:12 UTC] <ann>: The pool was exhausted by retries",
        "(14:06) - The pool was exhausted by retries",
        "14:06 – The pool was exhausted by retries",  # noqa: RUF001
        "Ann Okafor  14:06\nThe pool was exhausted by retries",
        "Ann Okafor  [2:06 PM]\nThe pool was exhausted\nby retries",
    ],
)
def test_times_are_found_however_they_are_written(line: str) -> None:
    (moment,) = told({"notes": f"Notes.\n\n{line}\n"})["moments"]
    assert moment["time"].endswith(("14:06", "14:06:12 UTC", "2:06 PM"))
    assert moment["what"] == "The pool was exhausted by retries"


@pytest.mark.parametrize("notes", [CHAT, PROTOCOL], ids=["chat", "protocol"])
def test_no_two_angles_find_the_same_and_every_angle_finds_something(notes: str) -> None:
    causes = [one["quote"] for found in by_angle(notes).values() for one in found["causes"]]
    assert len(causes) == len(set(causes)) >= 8
    assert all(found["causes"] for found in by_angle(notes).values())
    flat = " ".join(notes.split())
    assert [quote for quote in causes if quote not in flat] == []


def test_a_guess_is_a_suspicion() -> None:
    notes = "We suspect that the deployment caused it, because it changed the config.\n\nIt was deployed because of a flag."
    assert [one["certainty"] for one in by_angle(notes)["trigger"]["causes"]] == ["suspected", "stated"]


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("TODO ann: add a limit", ("Add a limit", "ann", "medium")),
        ("TODO(bob): add a limit", ("Add a limit", "bob", "medium")),
        ("Action item: Priya must add a limit today", ("Priya must add a limit today", "Priya", "high")),
        ("The platform team should own the alert.", ("The platform team should own the alert.", "platform team", "medium")),
        ("We should consider a limit some day.", ("We should consider a limit some day.", "", "low")),
        ("[14:06] ann: the limit must be raised, I can do that", ("The limit must be raised, I can do that", "ann", "high")),
        ("Somebody should @carl ask.", ("Somebody should @carl ask.", "carl", "medium")),
    ],
)
def test_work_to_do_has_its_owner_and_priority(line: str, action: tuple[str, str, str]) -> None:
    (found,) = [one for found in by_angle(f"Notes.\n\n{line}").values() for one in found["actions"]]
    assert (found["action"], found["owner"], found["priority"]) == action


@pytest.mark.parametrize("line", ["Should we add a limit?", "It should have been noticed.", "The pool has a limit."])
def test_what_is_no_work_to_do_is_none(line: str) -> None:
    assert [one for found in by_angle(f"Notes.\n\n{line}").values() for one in found["actions"]] == []


def test_every_question_that_notes_leave_open_is_unknown() -> None:
    asked = [line[2:] for line in PROTOCOL.splitlines() if line.endswith("?")]
    found = [one for found in by_angle(PROTOCOL).values() for one in found["unknown"]]
    assert sorted(found) == sorted(asked)


async def test_notes_that_tell_nothing_make_a_postmortem_that_says_so() -> None:
    given = {"notes": "It broke.", "service": "", "severity": ""}
    timeline = await ask("chronicler", given)
    causes = [await ask("investigator", {"angle": angle, "notes": "It broke.", "moments": []}) for angle in ANGLES]
    text = (await ask("scribe", {"timeline": timeline, "causes": causes}))["text"]
    assert text.count("The notes say nothing about this.") == 8
    assert text.startswith("# Postmortem: An incident without a title\n\n## Summary\n\nThe notes hold neither")


async def test_a_schema_of_somebody_else_is_not_filled_with_these_facts() -> None:
    from tests.unit.test_offline_model import answer

    schema = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
    assert await answer("actions", schema, {"notes": "We must add a limit to the pool."}) == ["We must add a limit to the pool."]
