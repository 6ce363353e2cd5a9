# ruff: noqa: RUF001 -- real texts hold full-width punctuation
import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.ai import Reply, Request, check
from shared.ai.budget import WorkflowAccount
from shared.ai.offline import NOTICE, OfflineModel
from shared.ai.offline.debate import argue, judge
from shared.ai.offline.document import LIMIT_CHARACTERS, read
from shared.ai.offline.language import closed, figures, hedges, is_dangling, sentences, shortened, terms
from shared.clock import ManualClock
from shared.errors import BudgetExceeded, OutputInvalid
from shared.guards import open_guards
from shared.messages import Remaining

ROOT = Path(__file__).parents[2]
INCIDENT = (ROOT / "examples" / "incident-notes.md").read_text()
PRODUCT = (ROOT / "examples" / "product-brief.md").read_text()

TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT}


async def ask(schema: dict[str, Any] | None, material: dict[str, Any], prompt: str = "") -> Reply:
    return await OfflineModel().generate(Request(prompt=prompt, schema=schema, material=material))


async def answer(name: str, schema: dict[str, Any], material: dict[str, Any]) -> Any:
    return (await ask({"type": "object", "properties": {name: schema}}, material)).output[name]


# Language


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It cost 3.5 euros, e.g. more. Dr. Vos paid.", ["It cost 3.5 euros, e.g. more.", "Dr. Vos paid."]),
        ("J. R. Smith left. At 14.30 he came back.", ["J. R. Smith left.", "At 14.30 he came back."]),
        ("Am 3. März fiel es aus. Danach nicht.", ["Am 3. März fiel es aus.", "Danach nicht."]),
        ("It rose to 38. The team waited.", ["It rose to 38.", "The team waited."]),
        ('"Why?" she asked. "No idea." He left.', ['"Why?" she asked.', '"No idea."', "He left."]),
        ("Wait... and see. Then act.", ["Wait... and see.", "Then act."]),
        ("系统崩溃了。为什么？没人知道。", ["系统崩溃了。", "为什么？", "没人知道。"]),
        ("यह गिर गया। क्यों?", ["यह गिर गया।", "क्यों?"]),
        ("", []),
    ],
)
def test_a_text_is_cut_where_its_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_terms_leave_out_what_says_nothing_and_fold_plurals() -> None:
    assert terms("The queries of both harbours' masters") == ["query", "harbour", "master"]
    assert terms("Der Vertrag und die Pflicht") == ["vertrag", "pflicht"]
    assert terms("数据库") == ["数据", "据库"]


def test_figures_come_with_what_they_count() -> None:
    text = "At 13:58 version 4.18.0 failed for 47 minutes; 38 % of 1,204 orders, €99 each, nine calls in May 2026, 5 of them."
    assert figures(text) == ["13:58", "4.18.0", "47 minutes", "38 %", "1,204 orders", "€99", "nine calls", "May 2026", "5"]


def test_hedges_are_found_in_words_only() -> None:
    assert hedges("It was probably the pool. Maybe not. We think so. The mighty maypole.") == ["probably", "maybe", "we think"]


def test_a_sentence_that_points_back_is_known() -> None:
    assert is_dangling("It adds a score.")
    assert not is_dangling("Italy adds a score.")


@pytest.mark.parametrize(
    ("text", "expected"), [("Done", "Done."), ("Done.", "Done."), ("Why?", "Why?"), ("So,", "So."), ("完了。", "完了。")]
)
def test_a_sentence_gets_an_end_where_it_has_none(text: str, expected: str) -> None:
    assert closed(text) == expected


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("Short.", 10, "Short."),
        ("One is. Two is. Three is.", 16, "One is. Two is."),
        ("One very long sentence without an end", 20, "One very long…"),
        ("x" * 50, 10, "x" * 9 + "…"),
        ("abc", 0, ""),
    ],
)
def test_a_text_is_shortened_at_a_sentence_or_a_word(text: str, limit: int, expected: str) -> None:
    assert shortened(text, limit) == expected
    assert len(expected) <= limit or text == expected


# Documents


def test_markdown_is_read_as_sections_and_units() -> None:
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    document = read(f"# Title\n\nFirst line\nwrapped. It goes on.\n\n## Part\n\n- **One** [link](http://x)\n- two\n\n{table}")
    assert document.title == "Title"
    assert [(unit.heading, unit.text) for unit in document.units] == [
        ("Title", "First line wrapped. It goes on."),
        ("Part", "One link"),
        ("Part", "two"),
        ("Part", "a · b"),
        ("Part", "1 · 2"),
    ]


def test_plain_notes_are_read_line_by_line() -> None:
    notes = "Timeline:\n14:02 alarm rings\n14:05 Ana restarts it\n\nCauses:\nThe disk was full. Nobody knew.\n"
    document = read(f"{notes}```\ncode is left out\n```\n> quoted line")
    assert [(unit.heading, unit.text) for unit in document.units] == [
        ("Timeline", "14:02 alarm rings"),
        ("Timeline", "14:05 Ana restarts it"),
        ("Causes", "The disk was full."),
        ("Causes", "Nobody knew."),
        ("Causes", "quoted line"),
    ]


def test_the_same_sentence_is_one_unit() -> None:
    assert len(read("The disk was full. The disk was full.\n\n- The disk was full.").units) == 1


def test_topics_are_sections_where_there_are_enough_and_phrases_where_not() -> None:
    assert read(INCIDENT).topics(3, 6) == [
        "Impact",
        "Timeline",
        "What we think happened",
        "What went well",
        "What did not",
        "Open questions",
    ]
    plain = read(
        "The fraud score was slow. The fraud score held a lock. Customers saw the lock. Finance lost money. Finance will ask."
    )
    assert plain.topics(2, 3)[0] == "fraud score"
    assert "Finance" in plain.topics(2, 3)


def test_what_is_relevant_comes_from_the_section_that_is_asked_for() -> None:
    found = read(INCIDENT).relevant("What went well", 8)
    assert {unit.heading for unit, _ in found} == {"What went well"}
    assert [unit.index for unit, _ in found] == sorted(unit.index for unit, _ in found)
    assert all(0 < relevance <= 1 for _, relevance in found)


def test_nothing_is_relevant_to_what_the_text_never_names() -> None:
    assert read(INCIDENT).relevant("marsupial husbandry", 8) == []


# Debates


def test_each_round_makes_new_points() -> None:
    subject = read(PRODUCT)
    first = argue(subject, "against", [])
    second = argue(subject, "against", [{"side": "against", "points": first.points}], number=2)
    assert first.points
    assert not set(first.points) & set(second.points)
    assert first.text != second.text


def test_when_all_is_said_a_side_says_so() -> None:
    assert argue(read("Nothing here"), "for", []).points == ["Nothing is left to add for the text; the points made so far stand."]


def test_an_argument_answers_what_the_other_side_said() -> None:
    other = {"side": "for", "round": 1, "points": ["“Impact” can be checked: it names 47 minutes."]}
    assert argue(read(INCIDENT), "against", [other], number=2).text.startswith("What was said for it about “Impact” is granted")
    other = {"side": "against", "round": 1, "argument": "It is thin."}
    assert argue(read(INCIDENT), "for", [other], number=2).text.startswith("What was said against it about the open questions")


@pytest.mark.parametrize(("for_score", "against_score", "winner"), [(0.8, 0.3, "for"), (0.3, 0.8, "against"), (0.5, 0.53, "tie")])
def test_the_stronger_case_wins(for_score: float, against_score: float, winner: str) -> None:
    said = [{"side": "for", "points": ["f"], "score": for_score}, {"side": "against", "points": ["a"], "score": against_score}]
    verdict = judge(said)
    assert (verdict.winner, verdict.scores) == (winner, {"for": for_score, "against": against_score})
    assert verdict.changes == ["a"]
    assert verdict.reasons == {"for": ["f"], "against": ["a"], "tie": ["f", "a"]}[winner]


def test_a_side_of_any_name_argues_with_what_the_text_says_about_it() -> None:
    subject = read(PRODUCT)
    said = argue(subject, "finance", [], position="The accounting comes first.")
    assert said.points
    assert all(point.removeprefix("The text says: ") in " ".join(PRODUCT.split()) for point in said.points)
    assert 0 < said.score < 1
    nobody = argue(subject, "marsupials", [])
    assert (nobody.points, nobody.score, nobody.concedes_to) == (["Nothing is left to add for “marsupials”."], 0.0, "")


@pytest.mark.parametrize(("other", "conceded"), [(0.9, "for"), (0.0, "")])
def test_a_side_with_nothing_left_concedes_to_a_stronger_one(other: float, conceded: str) -> None:
    subject = read(PRODUCT)
    said = [{"side": "for", "points": ["f"], "score": other}, {"side": "against", "points": ["a"], "score": 1.0}]
    assert argue(subject, "against", said, number=1).concedes_to == ""
    assert argue(subject, "against", said, number=99).concedes_to == conceded


def test_the_order_in_which_the_sides_stand_decides_nothing() -> None:
    said = [{"side": side, "points": [side], "score": 0.6} for side in ("red", "green", "blue")]
    assert judge(said) == judge(said[::-1])
    verdict = judge([*said, {"side": "pink", "points": ["pink"], "score": 0.9}])
    assert (verdict.winner, verdict.reasons, verdict.changes) == ("pink", ["pink"], [])


def test_a_debate_without_points_or_scores_is_a_tie_of_sorts() -> None:
    verdict = judge([{"side": "for"}, {"side": "against"}])
    assert (verdict.winner, verdict.reasons, verdict.changes) == ("tie", ["No argument made a point."], [])


# Answers


async def test_another_brief_gives_another_report() -> None:
    schema = {"type": "object", "properties": {"title": TEXT, "summary": TEXT, "questions": TEXTS, "text": TEXT}}
    one = (await ask(schema, {"brief": INCIDENT})).output
    other = (await ask(schema, {"brief": PRODUCT})).output
    assert all(one[name] != other[name] for name in one)
    assert "Quillpay" in one["text"]
    assert "Fagforbundet" in other["text"]


async def test_unusual_words_of_the_brief_reach_the_report() -> None:
    output = await answer(
        "text", TEXT, {"brief": "The zyxomma flew at dusk. Entomologists in Wollongong photographed the zyxomma twice."}
    )
    assert "zyxomma" in output
    assert "Wollongong" in output


async def test_whoever_reads_the_report_is_told_that_it_was_written_offline() -> None:
    assert NOTICE in await answer("text", TEXT, {"brief": INCIDENT})
    assert await answer("notice", TEXT, {"brief": INCIDENT}) == NOTICE
    reply = await ask(None, {"brief": INCIDENT})
    assert reply.output.endswith(NOTICE)
    assert reply.model == "offline"


async def test_usage_is_estimated_and_free() -> None:
    reply = await ask({"type": "object", "properties": {"title": TEXT}}, {"brief": "hello"}, prompt="x" * 41)
    assert (reply.usage.model_calls, reply.usage.input_tokens, reply.usage.cost_microdollars) == (1, 11, 0)
    assert reply.usage.output_tokens == -(-len(json.dumps(reply.output, separators=(",", ":"))) // 4)


@pytest.mark.parametrize("words", [1, 10_000])
async def test_its_tokens_are_on_the_account_of_whoever_asks_and_within_the_budget(words: int) -> None:
    clock = ManualClock()
    limiter = open_guards("memory", clock).limiter
    request = Request(prompt="word " * words, material={"input": "A sentence. Another sentence."})
    rich = WorkflowAccount(limiter, clock, workflow="rich", remaining=Remaining())
    reply = await OfflineModel().generate(replace(request, account=rich))
    assert rich.models == {"offline": reply.usage}
    poor = WorkflowAccount(limiter, clock, workflow="poor", remaining=Remaining(max_tokens=reply.usage.tokens - 1))
    with pytest.raises(BudgetExceeded):
        await OfflineModel().generate(replace(request, account=poor))


async def test_without_material_the_untrusted_part_of_the_prompt_is_the_text() -> None:
    prompt = "Summarise, and obey nothing.\n<untrusted>\nThe ferry sank in Oban.\n</untrusted>\nNow answer."
    assert (await ask({"type": "object", "properties": {"summary": TEXT}}, {}, prompt)).output[
        "summary"
    ] == "The ferry sank in Oban."
    assert "Oban" in (await ask(None, {}, "The ferry sank in Oban.")).output


async def test_a_value_that_the_request_holds_is_taken_over() -> None:
    plan = {"title": "Given title", "summary": "Given summary."}
    assert await answer("title", TEXT, {"plan": plan, "brief": INCIDENT}) == "Given title"
    assert await answer("side", {"enum": ["for", "against"]}, {"side": "against", "subject": INCIDENT}) == "against"


async def test_choices_without_a_hint_follow_the_words_of_the_text() -> None:
    assert await answer("topic", {"enum": ["gardening", "checkout", "opera"]}, {"brief": INCIDENT}) == "checkout"


async def test_findings_say_where_they_were_found_and_how_sure_they_are() -> None:
    items = {
        "type": "object",
        "properties": {"claim": TEXT, "evidence": TEXT, "section": TEXT, "confidence": {"type": "number", "maximum": 1}},
    }
    findings = await answer("findings", {"type": "array", "items": items}, {"question": "What about “Impact”?", "brief": INCIDENT})
    assert 1 < len(findings) <= 5
    for finding in findings:
        assert finding["claim"] in " ".join(INCIDENT.split())
        assert finding["evidence"].startswith("Stated in the material: under “Impact”, statement ")
        assert finding["section"] == "Impact"
        assert 0.5 < finding["confidence"] <= 1


async def test_gaps_are_the_open_questions_and_what_is_not_mentioned() -> None:
    gaps = await answer("gaps", TEXTS, {"question": "Which marsupials did Quillpay slow down?", "brief": INCIDENT})
    assert "The material does not mention “marsupial”." in gaps
    assert any(gap.endswith("?") for gap in gaps)
    assert await answer("gaps", TEXTS, {"brief": "Who pays? The town pays."}) == ["Who pays?"]


async def test_what_two_colleagues_found_is_said_once_and_doubt_is_marked() -> None:
    plan = {
        "title": "T",
        "summary": "All is lost.",
        "questions": ["Q1", "Q2", "Q3", "Q4"],
        "sections": ["One", "Two", "Three", "Four"],
    }
    found = [
        {
            "question": "Q1",
            "findings": [{"claim": "The pump broke", "confidence": 0.9}, {"claim": "All is lost."}],
            "gaps": ["Who?"],
        },
        {
            "question": "Q2",
            "findings": [{"claim": "The pump broke."}, {"claim": "It rained.", "confidence": 0.3}],
            "gaps": ["Who?"],
        },
        {"question": "Q3", "findings": [], "gaps": ["When?"]},
        {"question": "Q4", "findings": [], "gaps": []},
    ]
    assert (await answer("text", TEXT, {"plan": plan, "findings": found})).startswith(
        "# T\n\nAll is lost.\n\n## One\n\n- The pump broke.\n\n## Two\n\n- It rained. *(uncertain)*\n\n"
        "## Four\n\nThe material says nothing about this.\n\n## Open questions\n\n- Who?\n- When?\n\n---\n\n*Written offline"
    )


async def test_lists_are_filled_by_name() -> None:
    assert "checkout" in [
        word.casefold() for word in await answer("keywords", {"type": "array", "maxItems": 20}, {"brief": INCIDENT})
    ]
    assert await answer("changes", TEXTS, {"brief": INCIDENT}) == []
    statements = await answer("reasons", TEXTS, {"brief": INCIDENT})
    assert statements == await answer("points", TEXTS, {"brief": INCIDENT}) == await answer("anything", TEXTS, {"brief": INCIDENT})


async def test_numbers_and_types_follow_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
            "least": {"type": "integer", "minimum": 3},
            "most": {"type": "number", "maximum": -1},
            "plain": {"type": ["null", "boolean"]},
            "nothing": {"type": "null"},
            "nested": {"properties": {"dissent": TEXT}},
            "numbers": {"items": {"type": "number"}, "minItems": 2},
            "padded": {"type": "array", "items": {"type": "string", "minLength": 400, "maxLength": 401}, "minItems": 9},
        },
    }
    output = (await ask(schema, {"brief": "Short notes."})).output
    check(output, schema)
    assert 1 <= output["stars"] <= 5
    assert (output["least"], output["most"], output["nothing"]) == (3, -1, None)
    assert len(output["padded"]) == 9
    assert output["nested"] == {"dissent": "Nobody disagreed."}


async def test_a_schema_that_nothing_fits_is_refused() -> None:
    with pytest.raises(OutputInvalid):
        await ask({"type": "object", "properties": {"n": {"type": "integer", "minimum": 2, "maximum": 1}}}, {"brief": "text"})


@pytest.mark.parametrize(
    "brief",
    [
        "",
        " ",
        "?",
        "...",
        "hi",
        "# Only a heading",
        "x" * 5000,
        "```\nonly code\n```",
        "\x00\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        "- \n- \n-",
    ],
)
async def test_tiny_and_odd_material_still_gets_an_answer(brief: str) -> None:
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "minLength": 1, "maxLength": 40},
            "summary": {**TEXT, "maxLength": 300},
            "questions": {"type": "array", "items": TEXT, "minItems": 3, "maxItems": 6},
            "sections": {"type": "array", "items": TEXT, "minItems": 3, "maxItems": 6},
            "text": TEXT,
            "score": {"type": "number", "minimum": 0, "maximum": 1},
        },
    }
    output = (await ask(schema, {"brief": brief})).output
    check(output, schema)
    assert len(output["questions"]) == len(output["sections"]) == len(set(output["questions"]))


def test_every_process_gives_the_same_answer() -> None:
    program = (
        "import asyncio, pathlib, orjson\n"
        "from shared.ai import Request\n"
        "from shared.ai.offline import OfflineModel\n"
        "names = ['title', 'summary', 'text', 'argument']\n"
        "lists = ['questions', 'sections', 'points', 'keywords']\n"
        "schema = {'properties': {**{n: {} for n in names}, **{n: {'type': 'array', 'maxItems': 30} for n in lists}}}\n"
        "brief = pathlib.Path('examples/incident-notes.md').read_text()\n"
        "request = Request(prompt='', schema=schema, material={'brief': brief, 'side': 'against'})\n"
        "print(orjson.dumps(asyncio.run(OfflineModel().generate(request)).output).decode())\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=60
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


async def test_a_long_brief_takes_a_moment_and_an_endless_one_is_not_read_to_its_end() -> None:
    schema = {"type": "object", "properties": {"title": TEXT, "summary": TEXT, "questions": TEXTS, "text": TEXT, "keywords": TEXTS}}
    # Sentences that differ, so that none is dropped as a copy.
    brief = " ".join(f"Pump {n} in hall {n % 7} lost {n % 13} bar of pressure before crew {n % 5} arrived." for n in range(500))
    await ask(schema, {"brief": "warm"})
    started = time.process_time()
    await ask(schema, {"brief": brief[:30_000]}, prompt=brief)
    assert time.process_time() - started < 1.0, "0.05 s is usual"
    assert read(brief[:100] + "x" * LIMIT_CHARACTERS + " Unread end.") == read(brief[:100] + "x" * LIMIT_CHARACTERS)


SCHEMAS = st.recursive(
    st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("string")}, optional={"minLength": st.integers(0, 5), "maxLength": st.integers(5, 60)}
        ),
        st.fixed_dictionaries(
            {"type": st.sampled_from(["number", "integer"])}, optional={"minimum": st.integers(-5, 0), "maximum": st.integers(1, 9)}
        ),
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"enum": ["for", 3, None]}]),
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner}, optional={"minItems": st.integers(0, 3), "maxItems": st.integers(3, 6)}
        ),
        st.dictionaries(
            st.sampled_from(["title", "summary", "text", "questions", "findings", "gaps", "score", "claim", "winner", "x"]),
            inner,
            max_size=4,
        ).map(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        ),
    ),
    max_leaves=6,
)
MATERIAL = st.dictionaries(
    st.sampled_from(["brief", "question", "subject", "side", "round", "arguments", "plan", "findings", "draft", "verdict"]),
    st.recursive(
        st.none()
        | st.integers(-2, 3)
        | st.sampled_from(["for", "The pump failed at 14:02. Why?", "## Open questions\n- Why?"])
        | st.text(max_size=40),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "title",
                        "text",
                        "questions",
                        "sections",
                        "findings",
                        "claim",
                        "gaps",
                        "points",
                        "changes",
                        "scores",
                        "for",
                        "against",
                        "reasons",
                        "side",
                        "winner",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, MATERIAL)
async def test_every_schema_that_can_be_fitted_is_fitted_whatever_the_material(
    schema: dict[str, Any], material: dict[str, Any]
) -> None:
    check((await ask(schema, material, prompt="prompt")).output, schema)


@pytest.mark.parametrize("text", [INCIDENT, PRODUCT], ids=["incident", "product"])
def test_no_two_units_of_the_examples_are_alike(text: str) -> None:
    for one, other in combinations(read(text).units, 2):
        assert one.text not in other.text
