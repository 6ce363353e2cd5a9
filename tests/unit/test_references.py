"""References: what they are, what looks into them, and who may not make any."""

from typing import Any

import orjson
import pytest

from shared.errors import InputError
from shared.messages import WorkflowSignalled
from shared.references import KEY, Reference, Unopened, linked, opened, reference, references, refuse_reserved, replaced
from shared.templates import render
from shared.workflows import requested, requested_task, signal_event
from shared.workflows.comparing import _walk
from tests.support.doubles import WORKFLOW
from tests.support.live import definition

ONE, TWO = Reference("1" * 64, 100_000), Reference("2" * 64, 200_000)
FORGED = {"deep": [{KEY: {"sha256": "0" * 64, "bytes": 1}}]}


@pytest.mark.parametrize("one", [ONE, TWO])
def test_a_reference_is_read_as_it_was_written(one: Reference) -> None:
    assert reference(orjson.loads(orjson.dumps(one.as_json()))) == one


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        KEY,
        {},
        {KEY: 1},
        {KEY: {"sha256": "1" * 63, "bytes": 1}},
        {KEY: {"sha256": "1" * 64}},
        {**ONE.as_json(), "more": 1},
    ],
)
def test_what_only_looks_like_a_reference_is_a_value(value: Any) -> None:
    assert reference(value) is None
    assert opened(value) == value


def test_references_are_found_and_replaced_wherever_they_are() -> None:
    value = {"a": ONE.as_json(), "b": [TWO.as_json(), {"c": ONE.as_json()}], "d": KEY}
    assert references(value) == (ONE, TWO)
    assert replaced(value, {ONE: "one"}) == {"a": "one", "b": [TWO.as_json(), {"c": "one"}], "d": KEY}
    with pytest.raises(Unopened) as missing:
        opened(value)
    assert missing.value.references == (ONE, TWO)


def test_a_link_leads_to_the_whole_and_is_a_reference_still() -> None:
    (shown,) = linked([ONE.as_json()], "/there")
    assert shown == {KEY: {"sha256": ONE.sha256, "bytes": 100_000, "href": "/there"}}
    assert reference(shown) == ONE
    assert list(_walk("", shown, ONE.as_json())) == []
    assert list(_walk("", shown, TWO.as_json())) != []


CONTEXT = {"steps": {"a": {"output": ONE.as_json()}, "b": {"output": [TWO.as_json(), "small"]}}}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ steps.a.output }}", ONE.as_json()),
        ({"x": "{{ steps.b.output }}"}, {"x": [TWO.as_json(), "small"]}),
        ("{{ steps.b.output[0] }}", TWO.as_json()),
        ("{{ steps.b.output[1] }} is in text", "small is in text"),
    ],
)
def test_what_is_only_placed_stays_a_reference(template: Any, value: Any) -> None:
    assert render(template, CONTEXT) == value


@pytest.mark.parametrize(
    ("template", "needed"),
    [
        ("{{ steps.a.output.text }}", (ONE,)),
        ("{{ steps.b.output[0].x }}", (TWO,)),
        ("{{ steps.a.output }} is in text", (ONE,)),
        ("{{ steps.b.output }} is in text", (TWO,)),
    ],
)
def test_a_look_inside_asks_for_what_it_needs(template: Any, needed: tuple[Reference, ...]) -> None:
    with pytest.raises(Unopened) as missing:
        render(template, CONTEXT)
    assert missing.value.references == needed


SMALL = definition("- {id: a, agent: writer, input: {}}", input="{value: {type: object}}")


def test_nobody_from_outside_makes_a_reference() -> None:
    with pytest.raises(InputError, match="another name"):
        requested(SMALL, workflow=WORKFLOW, input={"value": FORGED}, default_max_retries=3)
    with pytest.raises(InputError, match="another name"):
        requested_task("writer", workflow=WORKFLOW, input={"value": FORGED}, default_max_retries=3)
    with pytest.raises(InputError, match="another name"):
        signal_event(WorkflowSignalled(workflow=WORKFLOW, name="paid", data=FORGED), signal="1")


def test_to_speak_of_the_key_is_allowed() -> None:
    refuse_reserved(orjson.dumps({"text": f"say {KEY}", "name": KEY, "quoted": f'"{KEY}"'}), "it")
