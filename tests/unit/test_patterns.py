"""A pattern turns parameters into steps, and data never into templates."""

from typing import Any

import pytest

from shared.errors import InputError
from shared.workflows import PATTERNS
from shared.workflows.patterns import Stage, expand


def test_before_rendering_look_ups_are_taken_on_trust_and_literals_are_not() -> None:
    values = {"subject": "{{ steps.a.output }}", "rounds": "{{ input.n }}", "sides": ["{{ no look-up"]}
    assert list(PATTERNS["debate"].problems(values, rendered=False)) == []
    assert [key for key, _ in PATTERNS["debate"].problems(values | {"rounds": "two"}, rendered=False)] == ["rounds"]


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(InputError, match=r"there is no pattern 'debat', did you mean 'debate'\?"):
        expand("debat", Stage("d", {}))


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_is_registered_under_its_name(pattern: Any) -> None:
    assert PATTERNS[pattern.name] is pattern
