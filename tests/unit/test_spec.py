"""`function.yaml`: every function of the project has one, and what is wrong with a bad one is said."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.bus.policy import backoff_seconds
from shared.errors import ConfigurationError
from shared.runtime.spec import FUNCTIONS, FunctionSpec, load_function, load_functions

GOOD: dict[str, Any] = {"name": "poet", "description": "Writes poems.", "triggers": [{"topic": "agent-poet"}]}


def folder_of(tmp_path: Path, content: str | dict[str, Any], *, name: str = "poet") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (folder / "function.yaml").write_text(text, encoding="utf-8")
    return folder


def test_every_function_folder_has_a_spec_and_a_main() -> None:
    folders = {path.name for path in FUNCTIONS.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == set(load_functions())
    assert all((FUNCTIONS / name / "main.py").is_file() for name in folders)


@pytest.mark.parametrize("spec", load_functions().values(), ids=lambda spec: spec.name)
def test_every_spec_can_be_deployed(spec: FunctionSpec) -> None:
    assert all(one.ack_deadline_seconds <= 600 for one in spec.subscriptions())
    assert spec.min_backoff_seconds <= spec.max_backoff_seconds
    assert "COMM_HMAC_KEYS" in spec.secrets
    # An agent asks a model, or is code alone.
    assert spec.is_agent == any((FUNCTIONS / spec.name / file).exists() for file in ("prompt.md", "agent.py"))


@pytest.mark.parametrize("spec", load_functions().values(), ids=lambda spec: spec.name)
def test_a_message_outlasts_a_quarter_of_an_hour_without_a_free_instance(spec: FunctionSpec) -> None:
    """Cloud Run answers 429 then, which is a delivery that failed. A dead letter fails its step for good."""
    for one in spec.subscriptions():
        if one.dead_letter_topic is not None:
            assert sum(backoff_seconds(one, attempt) for attempt in range(1, one.max_attempts)) >= 15 * 60


def test_defaults_stand_in_for_what_is_not_said(tmp_path: Path) -> None:
    spec = load_function(folder_of(tmp_path, GOOD))
    assert spec.is_agent
    (subscription,) = spec.subscriptions()
    assert (subscription.name, subscription.topic) == ("agent-poet.poet", "agent-poet")
    assert (subscription.ack_deadline_seconds, subscription.max_attempts) == (330, 10)
    assert subscription.dead_letter_topic == "dead-letters"


def test_a_topic_is_subscribed_to_and_schedules_and_requests_are_not(tmp_path: Path) -> None:
    triggers = [{"topic": "news"}, {"topic": "dead-letters", "signed": False}, {"schedule": "* * * * *"}, {"http": True}]
    spec = load_function(folder_of(tmp_path, {**GOOD, "triggers": triggers}))
    assert not spec.is_agent
    assert [one.name for one in spec.subscriptions()] == ["news.poet", "dead-letters.poet"]
    assert [one.dead_letter_topic for one in spec.subscriptions()] == ["dead-letters", None]


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"triggers": []}, "triggers"),
        ({"triggers": [{}]}, "one of topic, schedule or http"),
        ({"triggers": [{"topic": "news", "http": True}]}, "one of topic, schedule or http"),
        ({"triggers": [{"topic": "NEWS"}]}, "triggers.0.topic"),
        ({"triggers": [{"topic": "news", "sign": False}]}, "triggers.0.sign"),
        ({"memory": "1 GB"}, "memory"),
        ({"timeout_seconds": 571}, "timeout_seconds is at most 570 where a trigger is a topic"),
        ({"timeout_seconds": 3601, "triggers": [{"http": True}]}, "timeout_seconds"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_attempts": 4}, "max_attempts"),
        ({"max_backoff_seconds": 601}, "max_backoff_seconds"),
        ({"concurency": 3}, "concurency"),
        ({"name": "Poet"}, "name"),
        ({"name": "painter"}, "name is painter, but the folder is poet"),
    ],
)
def test_a_mistake_is_told_with_its_file_and_place(tmp_path: Path, change: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        load_function(folder_of(tmp_path, {**GOOD, **change}))
    assert "poet/function.yaml" in str(told.value)
    assert hint in str(told.value)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"memory.*concurrency"):
        load_function(folder_of(tmp_path, {**GOOD, "memory": "much", "concurrency": -1}))


@pytest.mark.parametrize("content", ["", "[", "- a list", "\tname: x", "name: !!python/object:os.system x"])
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigurationError, match=r"poet.function\.yaml"):
        load_function(folder_of(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"function\.yaml: cannot be read \(FileNotFoundError\)"):
        load_function(tmp_path / "poet")
