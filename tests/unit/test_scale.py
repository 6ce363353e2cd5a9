"""The day of a million workflows (docs/scale.md): its tables are fresh, its arithmetic holds."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from shared.ai.catalog import CATALOG
from shared.config import Settings as PlatformSettings
from shared.runtime.spec import load_functions

SCRIPTS = Path(__file__).parents[2] / "scripts"
WORKFLOWS = 100_000
KNOBS = ["pipelines", "qps", "calls_a_day", "tokens_a_minute", "agent_instances", "other_instances", "databases", "redis"]


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("scale_model")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def asked(model: Any) -> list[int]:
    counts: list[int] = model.arrivals(WORKFLOWS)
    return counts


def test_the_tables_of_the_document_are_what_the_script_prints() -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / "scale.py"), "--check"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_seed_gives_the_same_day_every_time(model: Any, asked: list[int]) -> None:
    assert asked == model.arrivals(WORKFLOWS)
    assert asked != model.arrivals(WORKFLOWS, seed=1)
    assert sum(asked) == WORKFLOWS
    burst = sum(asked[second] for second in model.BURST) / len(model.BURST)
    assert burst == pytest.approx(model.BURST_FACTOR * WORKFLOWS / 86_400, rel=0.15)


@pytest.fixture(scope="module")
def played(model: Any, asked: list[int]) -> Callable[[Any], Any]:
    """The day under some settings, each played once."""
    return cache(lambda settings: model.simulate(settings, asked))


def some_settings(model: Any) -> list[Any]:
    base = model.Settings()
    return [
        base,
        replace(base, calls_a_day=1e7),
        replace(base, pipelines=200, qps=60, calls_a_day=1e7),
        replace(base, pipelines=2000, qps=60, calls_a_day=5e5, tokens_a_minute=1e9),
        *model.scenarios(WORKFLOWS).values(),
    ]


def test_no_workflow_is_lost_and_no_call_is_made_twice(model: Any, played: Callable[[Any], Any]) -> None:
    for settings in some_settings(model):
        day = played(settings)
        assert day.asked == WORKFLOWS == day.done + day.running + day.queued
        assert min(day.done, day.running, day.queued) >= 0
        assert day.done * model.ALL_CALLS <= day.calls + 1e-3
        assert day.calls <= (day.done + day.running) * model.ALL_CALLS + 1e-3


def test_no_quota_is_exceeded(model: Any, played: Callable[[Any], Any]) -> None:
    for settings in some_settings(model):
        day = played(settings)
        slowest = min(one.workflows_a_second for one in model.limits(settings) if one.name != "model: requests a day")
        assert day.calls <= settings.calls_a_day + 1e-6
        assert day.most_calls_a_second <= settings.qps + 1e-6
        assert day.most_running <= settings.pipelines
        assert day.done <= slowest * 86_400 * (1 + 1e-9)


@pytest.mark.parametrize("knob", KNOBS)
def test_more_of_anything_never_means_less_done(model: Any, played: Callable[[Any], Any], knob: str) -> None:
    for settings in some_settings(model)[1:4]:
        more = replace(settings, **{knob: getattr(settings, knob) * 2})
        assert played(more).done >= played(settings).done


def test_what_is_tuned_for_a_rate_has_no_bottleneck_below_it(model: Any) -> None:
    for rate in (1.0, 11.6, 116.0):
        taken = model.turns(model.Settings(), rate)
        capacities = [limit.workflows_a_second for limit, _ in taken]
        assert capacities == sorted(capacities)
        assert min(one.workflows_a_second for one in model.limits(taken[-1][1])) >= rate
    assert model.turns(model.Settings(), 0.001) == []


def test_what_is_tuned_for_the_burst_waits_for_nothing(model: Any, played: Callable[[Any], Any]) -> None:
    chosen = model.scenarios(WORKFLOWS)
    by_day, for_burst = (played(chosen[name]) for name in ("tuned for the day", "tuned for the burst"))
    assert for_burst.wait_p95 == 0
    assert by_day.wait_p95 > 0
    assert by_day.wait_p50 <= by_day.wait_p95


def test_the_settings_as_delivered_are_those_of_the_platform(model: Any) -> None:
    platform, settings = PlatformSettings(), model.Settings()
    limit = CATALOG[settings.model].limit
    assert (settings.pipelines, settings.model) == (platform.max_concurrent_pipelines, platform.ai_model_default)
    assert (settings.qps, settings.calls_a_day, settings.tokens_a_minute) == (limit.qps, limit.per_day, limit.tokens_per_minute)
    infra = (SCRIPTS.parent / "infra" / "services.tf").read_text(encoding="utf-8")
    assert f"{{ agent = {settings.agent_instances}, other = {settings.other_instances} }}" in infra
    assert {spec.concurrency for name, spec in load_functions().items() if name in model.CALLS} == {model.PLACES}


def test_prices_of_models_are_those_of_the_catalog(model: Any) -> None:
    for name in ("gemini-2.5-pro", "gemini-2.5-flash-lite"):
        price = CATALOG[name].price
        assert price is not None
        prices = [model.PRICES[f"{name} {what}"].dollars * 1e6 for what in ("input", "output")]
        assert prices == pytest.approx([price.input_usd, price.output_usd])


def test_it_needs_the_standard_library_alone() -> None:
    files = sorted(SCRIPTS.glob("scale*.py"))
    names = {file.stem for file in files}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {one.partition(".")[0] for one in modules} <= sys.stdlib_module_names | names
