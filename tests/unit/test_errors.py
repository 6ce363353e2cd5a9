import inspect
import pickle
import re

import pytest

from shared import errors
from shared.errors import AgentTeamError, EnvelopeRejected, Permanent, RateLimited, Transient


def drawn_tree() -> dict[str, str]:
    """Name → name of the parent, as the picture at the top of the module has it."""
    parents: dict[str, str] = {}
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |    )*)(?:[├└]── )?([A-Z]\w+)", line)
        if match is None or not (match[2] == "AgentTeamError" or "── " in line):
            continue
        depth = 0 if match[2] == "AgentTeamError" else len(match[1]) // 4 + 1
        branch[depth:] = [match[2]]
        parents[match[2]] = branch[depth - 1] if depth else "Exception"
    return parents


def real_tree() -> dict[str, str]:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    return {kind.__name__: kind.__bases__[0].__name__ for kind in kinds}


def test_the_tree_that_is_drawn_is_the_tree_there_is() -> None:
    assert drawn_tree() == real_tree()
    assert drawn_tree()["EnvelopeRejected"] == "Permanent"


def test_every_error_is_either_permanent_or_transient() -> None:
    for name in real_tree().keys() - {"AgentTeamError"}:
        kind = getattr(errors, name)
        assert issubclass(kind, Permanent) != issubclass(kind, Transient), name


@pytest.mark.parametrize("name", sorted(real_tree()))
def test_an_errors_code_is_its_name_and_its_text_its_message(name: str) -> None:
    kind = getattr(errors, name)
    error = kind("key", "what was wrong") if kind is EnvelopeRejected else kind("what was wrong")
    assert isinstance(error, AgentTeamError)
    assert (error.code, str(error)) == (name, "what was wrong")


def test_a_transient_error_may_say_when_to_come_back() -> None:
    assert Transient("later").retry_after_seconds is None
    assert RateLimited("later", retry_after_seconds=0.0).retry_after_seconds == 0.0


def test_a_rejected_envelope_says_which_rule_it_broke() -> None:
    assert EnvelopeRejected("signature", "HMAC verification failed").reason == "signature"


def test_a_simple_error_survives_pickling() -> None:
    assert str(pickle.loads(pickle.dumps(Permanent("kept")))) == "kept"
