"""An API held to its own description: schemathesis's engine, in every way that the description allows, over real HTTP."""

import string
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import schemathesis
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder

_SEED: Final = 20261124
_FORK: Final = "POST /v1/workflows/{id}/fork"
_KEY_REUSED: Final = "urn:agent-team:problem:idempotency-key-reused"

schemathesis.openapi.format(
    "printable",
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200).filter(
        lambda text: text.isprintable() and text.strip() != "" and text not in (".", "..")
    )
    | st.text(string.ascii_letters + "/", min_size=1, max_size=60).map(lambda text: unicodedata.normalize("NFC", text)),
)
schemathesis.openapi.format(
    "public-url",
    st.text(string.ascii_letters + string.digits + "/-._~", max_size=60).map(lambda path: f"https://example.org/{path}"),
)


@dataclass
class Report:
    """What came of it."""

    cases: Counter[str] = field(default_factory=Counter)
    """How many requests, by operation."""
    statuses: Counter[int] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    """How to send the first request that met each."""


def examine(url: str, *, key: str | None, examples: int, max_seconds: int) -> Report:
    """Every check on every operation that `url` describes; `examples` at most of each in the last phase. Blocks.

    `key` is what a platform with API keys asks for. One without, None, asks nobody for what it says that it would.
    """
    config = SchemathesisConfig.from_dict(
        {
            "base-url": url,
            "seed": _SEED,
            "auth": {} if key is None else {"openapi": {"bearer": {"bearer": key}}},
            "request-timeout": 20,
            "max-time": max_seconds,
            "max-stream-events": 20,
            "continue-on-failure": True,
            # No schema can say of what an object holds at any depth that it has no NUL.
            "generation": {
                "max-examples": examples,
                "database": "none",
                "no-shrink": True,
                "deterministic": True,
                "allow-x00": False,
            },
            "phases": {"stateful": {"enabled": False}},
        }
    )
    document = httpx.get(f"{url}/openapi.json").json()
    if key is None:
        for operation in [operation for methods in document["paths"].values() for operation in methods.values()]:
            operation.pop("security", None)
    schema = schemathesis.openapi.from_dict(document, config=config)
    schema.hooks.hook("filter_failure")(_is_news)
    report = Report()
    for event in from_schema(schema).execute():
        match event:
            case ScenarioFinished():
                _add(report, event.recorder)
            case NonFatalError() | FatalError():
                report.failures[str(event)] = event.label if isinstance(event, NonFatalError) else ""
    return report


def _add(report: Report, recorder: ScenarioRecorder) -> None:
    for id, interaction in recorder.interactions.items():
        report.cases[recorder.label] += 1
        if interaction.response is not None:
            report.statuses[interaction.response.status_code] += 1
        for check in recorder.checks.get(id, ()):
            if check.status is Status.FAILURE and check.failure_info is not None:
                failure = check.failure_info.failure
                what = f"{recorder.label}: {failure.title}: {failure.message}"
                report.failures.setdefault(what, check.failure_info.code_sample)


def _is_news(_context: Any, _failure: Failure, case: Any, response: Any) -> bool:
    """What no schema can say of one request alone is refused as documented.

    A key that another request had; and of a fork, which entries and which input its workflow has.
    """
    if response.status_code != 422:
        return True
    return not (case.operation.label == _FORK or response.json()["type"] == _KEY_REUSED)
