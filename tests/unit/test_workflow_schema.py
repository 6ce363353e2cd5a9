"""The JSON Schema of definitions: up to date, with every key explained. It takes what is right and refuses what is not."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
import yaml

from shared.cli.workflows import schema_text
from shared.errors import DefinitionError
from shared.runtime.spec import load_functions
from shared.workflows import PATTERNS, parse_definition
from shared.workflows.schema import definition_schema

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "workflows").glob("*.yaml"))
AGENTS = [name for name, spec in load_functions().items() if spec.is_agent]
SCHEMA = definition_schema(agents=AGENTS)
VALIDATOR = jsonschema_rs.Draft202012Validator(SCHEMA)

HEAD = "name: small\nversion: 1\n"
STEP = "steps: [{id: a, agent: writer}]\n"
RIGHT = (
    HEAD + STEP,
    HEAD + "schedule: null\nbudget: {max_steps: null, max_cost_usd: 1}\n" + STEP,
    HEAD + "input: {x: {type: array, default: [1]}}\n" + STEP,
    HEAD + "steps: [{id: a, agent: writer, pattern: null, when: true, for_each: [1, 2], max_retries: null}]\n",
    HEAD + "input: {x: {type: array}}\nsteps: [{id: a, agent: writer, for_each: '{{ input.x }}', when: '{{ input.x }}'}]\n",
    HEAD + "steps: [{id: a, approval: {prompt: Send it, timeout_seconds: 5, default: reject}, on_failure: continue}]\n",
    HEAD + "steps: [{id: a, wait: {seconds: 0}}, {id: b, wait: {until: '2026-01-31T12:00:00Z'}}, {id: c, wait: {signal: paid}}]\n",
    HEAD + "steps: [{id: a, pattern: debate, with: {subject: x, sides: [a, b, c]}}]\n",
)
WRONG = (
    "[]\n",
    "name: small\n" + STEP,
    HEAD,
    "name: Small\nversion: 1\n" + STEP,
    "name: small\nversion: 0\n" + STEP,
    "name: small\nversion: '1'\n" + STEP,
    HEAD + "stepz: []\n" + STEP,
    HEAD + "steps: []\n",
    HEAD + "steps: {a: 1}\n",
    HEAD + "input: {x: {type: text}}\n" + STEP,
    HEAD + "input: {x: {type: string, requird: true}}\n" + STEP,
    HEAD + "input: {x y: {type: string}}\n" + STEP,
    HEAD + "budget: {max_steps: 0}\n" + STEP,
    HEAD + "budget: {max_tokens: 9999999999999}\n" + STEP,
    HEAD + "budget: {tokens: 1}\n" + STEP,
    HEAD + "steps: [{agent: writer}]\n",
    HEAD + "steps: [{id: a b, agent: writer}]\n",
    HEAD + "steps: [{id: a}]\n",
    HEAD + "steps: [{id: a, agent: null}]\n",
    HEAD + "steps: [{id: a, agent: writer, wait: {seconds: 1}}]\n",
    HEAD + "steps: [{id: a, agent: wrtier}]\n",
    HEAD + "steps: [{id: a, pattern: debatte, with: {subject: x}}]\n",
    HEAD + "steps: [{id: a, pattern: debate}]\n",
    HEAD + "steps: [{id: a, pattern: debate, with: {subjekt: x}}]\n",
    HEAD + "steps: [{id: a, pattern: debate, with: {subject: x}, input: {}}]\n",
    HEAD + "steps: [{id: a, agent: writer, with: {subject: x}}]\n",
    HEAD + "steps: [{id: a, agent: writer, needs: b}]\n",
    HEAD + "steps: [{id: b, agent: writer}, {id: a, agent: writer, needs: [b, b]}]\n",
    HEAD + "steps: [{id: a, agent: writer, when: maybe}]\n",
    HEAD + "steps: [{id: a, agent: writer, for_each: 3}]\n",
    HEAD + "steps: [{id: a, agent: writer, timeout_seconds: 0}]\n",
    HEAD + "steps: [{id: a, agent: writer, max_retries: 1.5}]\n",
    HEAD + "steps: [{id: a, agent: writer, on_failure: ignore}]\n",
    HEAD + "steps: [{id: a, approval: {}}]\n",
    HEAD + "steps: [{id: a, approval: {prompt: x, default: maybe}}]\n",
    HEAD + "steps: [{id: a, approval: {prompt: x}, input: {}}]\n",
    HEAD + "steps: [{id: a, approval: {prompt: x}, timeout_seconds: 5}]\n",
    HEAD + "steps: [{id: a, wait: {}}]\n",
    HEAD + "steps: [{id: a, wait: {seconds: 1, signal: x}}]\n",
    HEAD + "steps: [{id: a, wait: {seconds: 1, timeout_seconds: 1}}]\n",
    HEAD + "steps: [{id: a, wait: {seconds: -1}}]\n",
    HEAD + "steps: [{id: a, wait: {until: 5}}]\n",
    HEAD + "steps: [{id: a, wait: {seconds: 1}, for_each: [1]}]\n",
)


def keys(schema: Any, place: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every key that a definition may have: of which model, its name and what is said of it."""
    for name, model in {"Definition": schema, **schema["$defs"]}.items():
        for key, field in model.get("properties", {}).items():
            yield name, key, field


def test_the_schema_in_the_documentation_is_up_to_date() -> None:
    kept = (ROOT / "docs" / "workflow.schema.json").read_text(encoding="utf-8")
    assert kept == schema_text(), "say ./agent-team workflows schema > docs/workflow.schema.json"
    assert orjson.loads(kept) == SCHEMA


def test_it_is_a_schema_of_its_draft() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(SCHEMA)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_definition_fits_the_schema_and_names_it_to_editors(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    VALIDATOR.validate(yaml.safe_load(text))
    match = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert match is not None, "begin it with # yaml-language-server: $schema=../docs/workflow.schema.json"
    assert (file.parent / match[1]).resolve() == ROOT / "docs" / "workflow.schema.json"


@pytest.mark.parametrize("text", RIGHT)
def test_what_the_checker_takes_the_schema_takes(text: str) -> None:
    parse_definition(text, file="small.yaml", agents=AGENTS)
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", WRONG)
def test_what_the_checker_refuses_for_its_shape_the_schema_refuses(text: str) -> None:
    with pytest.raises(DefinitionError):
        parse_definition(text, file="small.yaml", agents=AGENTS)
    assert not VALIDATOR.is_valid(yaml.safe_load(text))


def test_every_key_is_explained_in_the_schema() -> None:
    unexplained = [f"{model}.{key}" for model, key, field in keys(SCHEMA) if not field.get("description")]
    assert unexplained == [], "give the field a description, or a line in shared/workflows/schema.py"


def test_every_pattern_and_its_parameters_are_in_the_schema() -> None:
    rules = [rule for rule in SCHEMA["$defs"]["Step"]["allOf"] if "pattern" in rule.get("if", {}).get("properties", {})]
    told = {
        rule["if"]["properties"]["pattern"].get("const"): rule["then"]["properties"].get("with", {}).get("properties", {})
        for rule in rules
    }
    for name, pattern in PATTERNS.items():
        assert set(told[name]) == set(pattern.parameters)
        assert all(parameter["description"] for parameter in told[name].values())


def test_every_key_every_pattern_and_every_parameter_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "definitions.md").read_text(encoding="utf-8")
    words = {key for _, key, _ in keys(SCHEMA)} | set(PATTERNS) | {key for one in PATTERNS.values() for key in one.parameters}
    missing = {word for word in words if f"`{word}`" not in page}
    assert missing == set(), "tell of them in docs/definitions.md"
