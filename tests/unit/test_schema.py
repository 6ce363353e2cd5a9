from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ai.schema import check, check_schema, problems, read_answer
from shared.errors import ConfigurationError, OutputInvalid

FINDINGS: dict[str, Any] = {
    "type": "object",
    "required": ["findings"],
    "additionalProperties": False,
    "properties": {
        "findings": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {
                "type": "object",
                "required": ["claim"],
                "properties": {
                    "claim": {"type": "string", "minLength": 1, "maxLength": 5},
                    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        },
        "note": {"type": ["string", "null"], "description": "free"},
    },
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "$ is not of type object"),
        ({}, "$.findings is missing"),
        ({"findings": []}, "$.findings has fewer than 1 items"),
        ({"findings": [{"claim": "a"}] * 3}, "$.findings has more than 2 items"),
        ({"findings": [{"claim": "a"}, {}]}, "$.findings[1].claim is missing"),
        ({"findings": [{"claim": ""}]}, "$.findings[0].claim is shorter than 1 characters"),
        ({"findings": [{"claim": "secret"}]}, "$.findings[0].claim is longer than 5 characters"),
        ({"findings": [{"claim": "a", "confidence": 2}]}, "$.findings[0].confidence is more than 1"),
        ({"findings": [{"claim": "a", "confidence": -0.1}]}, "$.findings[0].confidence is less than 0"),
        ({"findings": [{"claim": "a", "confidence": True}]}, "$.findings[0].confidence is not of type number"),
        ({"findings": [{"claim": "a", "confidence": float("nan")}]}, "$.findings[0].confidence is not of type number"),
        ({"findings": [{"claim": "a"}], "note": 1}, "$.note is not of type string or null"),
        ({"findings": [{"claim": "a"}], "secret": 1}, "$ has 1 field that the schema does not name"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_path_and_never_shown(value: Any, expected: str) -> None:
    with pytest.raises(OutputInvalid) as caught:
        check(value, FINDINGS)
    assert str(caught.value) == f"the answer does not fit its schema: {expected}"
    assert "secret" not in str(caught.value)


def test_a_value_that_fits_is_let_through() -> None:
    check({"findings": [{"claim": "a", "confidence": 1}, {"claim": "b", "other": 3}], "note": None}, FINDINGS)


def test_every_problem_can_be_listed() -> None:
    assert [path for path, _ in problems({"findings": [{}, {"claim": 1}], "x": 1}, FINDINGS)] == [
        "$.findings[0].claim",
        "$.findings[1].claim",
        "$",
    ]


@pytest.mark.parametrize(
    ("value", "schema", "fits"),
    [
        (1, {"type": "integer"}, True),
        (1.0, {"type": "integer"}, True),
        (1.5, {"type": "integer"}, False),
        (True, {"type": "integer"}, False),
        (True, {"type": "boolean"}, True),
        (1, {"type": "boolean"}, False),
        (None, {"type": "null"}, True),
        ("for", {"enum": ["for", "against"]}, True),
        ("tie", {"enum": ["for", "against"]}, False),
        (True, {"enum": [1]}, False),
        ({"anything": 1}, {}, True),
        (7, {"minLength": 3, "maximum": 7}, True),
    ],
)
def test_types_are_those_of_json(value: Any, schema: dict[str, Any], fits: bool) -> None:
    assert (not list(problems(value, schema))) is fits


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("string", "$ is not a schema"),
        ({"type": "text"}, "$.type is 'text'"),
        ({"type": "string", "pattern": "a+"}, "$ uses pattern"),
        ({"properties": {"a": {"$ref": "#"}}}, "$.properties.a uses $ref"),
        ({"items": {"anyOf": []}}, "$.items uses anyOf"),
        ({"properties": ["a"]}, "$.properties is not an object"),
        ({"properties": {"a": {}}, "required": ["b"]}, "$.required is not a list of names"),
        ({"required": "a"}, "$.required is not a list of names"),
        ({"enum": []}, "$.enum is not a list"),
        ({"minimum": "1"}, "$.minimum is not a number"),
        ({"maxItems": True}, "$.maxItems is not a number"),
        ({"additionalProperties": True}, "$.additionalProperties can only be false"),
    ],
)
def test_a_schema_that_nobody_would_check_is_refused(schema: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_schema(schema)
    assert str(caught.value).startswith(reason)


def test_a_schema_that_is_understood_is_let_through() -> None:
    check_schema(FINDINGS)
    check_schema({})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_judged_without_a_crash(value: Any) -> None:
    found = list(problems(value, FINDINGS))
    if found:
        with pytest.raises(OutputInvalid):
            check(value, FINDINGS)
    else:
        assert set(value) >= {"findings"}
        check(value, FINDINGS)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ('{"a": 1}', {"a": 1}),
        (' \n{"a": 1} ', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('\n``` JSON\n{"a":\n1}\n```\n', None),
        ('```\n{"a": 1}\n  ```', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ('Here: {"a": 1}', None),
        ('```json\n{"a": 1}\n``` and more', None),
        ('{"a": "1"}', None),
        ({"b": 1}, None),
        ("", None),
        ("```" * 50_000, None),
    ],
)
def test_an_answer_is_read_as_json_bare_or_fenced(answer: Any, read: Any) -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    if read is None:
        with pytest.raises(OutputInvalid):
            read_answer(answer, schema)
    else:
        assert read_answer(answer, schema) == read
