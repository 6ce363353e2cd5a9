"""Arithmetic for models: the same results as Python's, and nothing but arithmetic."""

import math
import re
import time
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.ai.tools.calculating import FUNCTIONS, LONGEST, calculate
from shared.errors import InputError

PYTHON: dict[str, Any] = {
    "__builtins__": {},
    **{name: getattr(math, name, None) for name in FUNCTIONS},
    **{"abs": abs, "max": max, "min": min, "round": round, "sum": sum, "pi": math.pi, "e": math.e},
}

numbers = st.one_of(
    st.integers(0, 10**6).map(str),
    st.floats(0, 1e6, allow_nan=False).map(lambda value: f"{value:.4f}"),
    st.sampled_from(["pi", "e", "1e3", ".5", "2.", "1E-2"]),
)


def larger(smaller: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(smaller, st.sampled_from(["+", "-", "*", "/", "//", "%", "**", " + ", " * "]), smaller)
    several = st.lists(smaller, min_size=1, max_size=4).map(",".join)
    return st.one_of(
        two.map("".join),
        smaller.map("({})".format),
        smaller.map("-({})".format),
        st.tuples(st.sampled_from(["abs", "sqrt", "exp", "log", "floor", "ceil", "round", "sin"]), smaller).map(
            lambda made: f"{made[0]}({made[1]})"
        ),
        several.map("max({},0)".format),
        several.map("sum([{}])".format),
    )


expressions = st.recursive(numbers, larger, max_leaves=12).filter(lambda expression: len(expression) <= LONGEST)


def in_python(expression: str) -> Any:
    """What Python makes of it; None where it has no real result of a size that is allowed."""
    if "**" in expression and max(map(int, re.findall(r"\d+", expression)), default=0) > 300:
        return None  # Python itself would take for ever
    try:
        value = eval(expression, PYTHON)
        return value if math.isfinite(value) else None
    except (ArithmeticError, ValueError, TypeError):  # TypeError: a complex number
        return None


@settings(max_examples=500, deadline=None)
@given(expressions)
def test_a_result_is_the_one_that_python_has(expression: str) -> None:
    if expression.count("**") > 1:
        return  # towers: bounded here, endless there
    expected = in_python(expression)
    if expected is not None and abs(expected) < 2**1000:
        try:
            found = calculate(expression)
        except InputError as refusal:
            # Something on the way to the result was too large.
            assert "too large" in str(refusal)  # noqa: PT017
            return
        assert found == str(expected)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text("0123456789.+-*/%()[], eabsqrtmxj_", max_size=120), expressions))
def test_whatever_is_sent_is_a_number_or_one_line_in_no_time(expression: str) -> None:
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = calculate(expression)
        except InputError as refusal:
            assert "\n" not in str(refusal)  # noqa: PT017
        else:
            assert re.fullmatch(r"-?\d{1,309}", found) is not None or math.isfinite(float(found))
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("(1250 * 1.19 - 80) / 12", "117.29166666666667"),
        ("0.1 + 0.2", "0.30000000000000004"),
        ("2 ** 1023 // 3", str(2**1023 // 3)),
        ("round(2.5675, 2)", "2.57"),
        ("-2 ** 2", "-4"),
        ("7 // -2 + 7 % -2", "-5"),
        ("sum([1, 2, 3]) / max(2, 3)", "2.0"),
        ("min([4, 2])", "2"),
        ("log(8, 2)", "3.0"),
        ("1 ** 99999999", "1"),
        ("10 ** (-10 ** 9)", "0.0"),
        ("+".join("1" * 200), "200"),
    ],
)
def test_expressions_that_models_write_have_their_results(expression: str, result: str) -> None:
    assert calculate(expression) == result


HOSTILE = {
    "10**10**10": "a power is too large",
    "9**9**9": "a power is too large",
    "(2**1000)**1000": "a power is too large",
    "2**1023*2": "a result is too large",
    "2.0**99999": "a result is too large",
    "exp(1000)": "a result is too large",
    "1e999": "not a real number, or too large",
    "1e999-1e999": "not a real number, or too large",
    "(-8)**0.5": "not a real number",
    "sqrt(-1)": "no result for its arguments",
    "log(0)": "no result for its arguments",
    "log(2, 1)": "divides by zero",
    "1/0": "divides by zero",
    "0.0**-1": "divides by zero",
    "round(1, -999999999)": "round takes at most",
    "round(1, 2.5)": "round takes at most",
    "max()": "no result for its arguments",
    "abs(1, 2)": "no result for its arguments",
    "abs([1])": "no result for its arguments",
    "sum([[1]])": "a list can only stand in",
    "[1]": "a list is no result",
    "[1]*9": "a list can only stand in",
    "[1, 2][0]": "what is not arithmetic",
    "(1).real": "what is not arithmetic",
    "1 .real": "what is not arithmetic",
    "().__class__.__bases__": "what is not arithmetic",
    "abs.__self__": "what is not arithmetic",
    "abs": "what is not arithmetic",
    "True": "what is not arithmetic",
    "1j": "what is not arithmetic",
    "0x10": "what is not arithmetic",
    "007": "cannot be read",
    "1 if 1 else 2": "what is not arithmetic",
    "1if 1else 2": "what is not arithmetic",
    "1 and 2": "what is not arithmetic",
    "not 1": "what is not arithmetic",
    "(1, 2)": "what is not arithmetic",
    "sum(*[1])": "what is not arithmetic",
    "[x for x in [1]]": "what is not arithmetic",
    "(yield)": "what is not arithmetic",
    "await abs(1)": "what is not arithmetic",
    "open(1)": "what is not arithmetic",
    "eval(1)": "what is not arithmetic",
    "__import__('os').system('id')": "what is not arithmetic",
    "f'{1}'": "what is not arithmetic",
    "'a'*9": "what is not arithmetic",
    "lambda: 1": "what is not arithmetic",
    "x := 1": "what is not arithmetic",
    "1 < 2": "what is not arithmetic",
    "1; 2": "what is not arithmetic",
    "1 # 2": "what is not arithmetic",
    "\uff11\uff0b\uff11": "what is not arithmetic",
    "1\n+1": "what is not arithmetic",
    "1\0": "what is not arithmetic",
    "": "what is not arithmetic",
    "   ": "cannot be read",
    "1 +": "cannot be read",
    "(" * 240 + "1" + ")" * 240: "cannot be read",
    "-" * 400 + "1": "nested deeper",
    "1" * 500: "a result is too large",
    "1" * 501: "longer than 500 characters",
    "a" * 499 + "!": "what is not arithmetic",
    "1+" * 249 + "!": "what is not arithmetic",
}


@pytest.mark.parametrize("expression", HOSTILE)
def test_what_is_not_arithmetic_or_has_no_result_is_refused_at_once_with_the_reason(expression: str) -> None:
    begun = time.process_time()
    with pytest.raises(InputError, match="the expression has no result: ") as caught:
        calculate(expression)
    assert HOSTILE[expression] in str(caught.value)
    assert time.process_time() - begun < 0.5
