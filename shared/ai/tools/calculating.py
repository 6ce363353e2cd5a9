"""Arithmetic for models, which are bad at it. Nothing is evaluated as code: an expression is parsed and its tree is walked.

What it may hold: decimal numbers, `+ - * / // % **`, parentheses, lists as arguments, the functions below, pi and e. Every bound is
checked before the work that it bounds, so that no expression takes long.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NoReturn

from pydantic import Field

from shared.errors import InputError

Number = int | float
LONGEST: Final = 500
_DEEPEST: Final = 200
"""A sum of as many terms is."""
_MOST_BITS: Final = 1024
"""Of a whole number: as large as a float can be."""
_MOST_DIGITS: Final = 100

_TOKENS: Final = re.compile(
    r"(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])|[A-Za-z_]\w*(?!\w)|[-+*/%(),\[\] \t])+", re.ASCII
)
"""What an expression is made of. Python's tokeniser knows more, and warns about some of it."""


def _power(base: Number, exponent: Number) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and base.bit_length() * exponent > 2 * _MOST_BITS:
        _refuse("a power is too large")
    return base**exponent


def _round(number: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > _MOST_DIGITS:
        _refuse(f"round takes at most {_MOST_DIGITS} digits, as a whole number")
    return round(number, digits) if digits else round(number)


def _several(choose: Callable[[list[Number]], Number]) -> Callable[..., Number]:
    def chosen(*values: Any) -> Number:
        return choose(list(values[0] if len(values) == 1 and isinstance(values[0], list) else values))

    return chosen


_OPERATORS: Final[Mapping[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "max": _several(max),
    "min": _several(min),
    "round": _round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "sum": _several(sum),
    "tan": math.tan,
}
_NAMES: Final = {"pi": math.pi, "e": math.e}


def calculate(
    expression: Annotated[
        str,
        "Such as (1250 * 1.19 - 80) / 12. Numbers, + - * / // % **, parentheses, pi, e, and the functions abs, ceil, cos, exp, "
        "floor, log, log10, log2, max, min, round, sin, sqrt, sum, tan.",
        Field(min_length=1, max_length=LONGEST),
    ],
) -> str:
    """Work out an arithmetic expression.

    Raises InputError, in one line, for what is not such an expression, has no result, or has one that is too large.
    """
    if len(expression) > LONGEST:
        _refuse(f"it is longer than {LONGEST} characters")
    if _TOKENS.fullmatch(expression) is None:
        _refuse("it holds what is not arithmetic; write numbers, + - * / // % ** and parentheses")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        _refuse("it cannot be read; check its parentheses and operators")
    try:
        value = _value(tree.body, 0)
    except ZeroDivisionError:
        _refuse("it divides by zero")
    except OverflowError:
        _refuse("a result is too large")
    except (TypeError, ValueError):
        _refuse("a function or operator has no result for its arguments")
    if isinstance(value, list):
        _refuse("a list is no result; use sum, min or max")
    return str(value)


def _value(node: ast.expr, depth: int) -> Any:
    if depth > _DEEPEST:
        _refuse(f"it is nested deeper than {_DEEPEST}")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _bounded(_OPERATORS[type(op)](_number(operand, depth + 1)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _bounded(_OPERATORS[type(op)](_number(left, depth + 1), _number(right, depth + 1)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _bounded(FUNCTIONS[name](*(_value(one, depth + 1) for one in arguments)))
        case ast.List(elts=items):
            return [_number(one, depth + 1) for one in items]
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
    _refuse(f"it holds what is not arithmetic; the functions are {', '.join(FUNCTIONS)}")


def _number(node: ast.expr, depth: int) -> Number:
    value = _value(node, depth)
    if isinstance(value, list):
        _refuse("a list can only stand in sum, min or max")
    return value  # type: ignore[no-any-return]


def _bounded(value: Any) -> Number:
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            _refuse("a result is too large")
        return value
    if not isinstance(value, float) or not math.isfinite(value):
        _refuse("a result is not a real number, or too large")
    return value


def _refuse(reason: str) -> NoReturn:
    raise InputError(f"the expression has no result: {reason}")
