import ast
import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared import telemetry
from shared.telemetry import METRICS_CONTENT_TYPE, MetricLog, Metrics, configure_logging
from shared.telemetry.metrics import DECLARED, Metric

ROOT = Path(__file__).parents[2]
PROMISED = {
    *("task.success", "task.failure", "task.duration_ms"),
    *(
        "workflow.started",
        "workflow.succeeded",
        "workflow.failed",
        "workflow.cancelled",
        "workflow.execution_ms",
        "workflow.queued",
    ),
    *("step.retried", "step.deferred", "step.lease_expired"),
    *("bus.backlog", "bus.oldest_unacked_seconds"),
    "webhook.sent",
    *("envelope.rejected", "delivery.duplicate", "dead_letter.count", "dead_letter.redriven"),
    "retention.purged",
    "guards.outage",
    *("ai.requests", "ai.requests_per_second", "ai.rate_limit.denied", "ai.rate_limit.wait_ms", "ai.fallback", "ai.breaker.state"),
    *("ai.tokens", "ai.cost_microdollars", "ai.cache.hit"),
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level, stream = root.level, io.StringIO()
    handler = configure_logging("error", stream=stream, cloud=True, project="acme")
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def note(metrics: Metrics, metric: Metric, value: float, **labels: str) -> None:
    {"counter": metrics.count, "gauge": metrics.gauge, "histogram": metrics.observe}[metric.kind](metric.name, value, **labels)


def test_the_table_holds_what_was_promised_each_once() -> None:
    assert {metric.name for metric in DECLARED} == PROMISED
    assert len(DECLARED) == len({metric.prometheus_name for metric in DECLARED}) == len(PROMISED)


@pytest.mark.parametrize("metric", DECLARED, ids=lambda metric: metric.name)
def test_every_metric_can_be_noted_read_and_shown(metrics: Metrics, metric: Metric) -> None:
    labels = dict.fromkeys(metric.labels, "x")
    assert metrics.value(metric.name, **labels) == 0.0
    note(metrics, metric, 3, **labels)
    assert metrics.value(metric.name, **labels) == (1.0 if metric.kind == "histogram" else 3.0)
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    family = families[metric.prometheus_name]
    assert (family.type, family.documentation) == (metric.kind, metric.description)
    assert 3.0 in [sample.value for sample in family.samples if sample.labels == labels]


def test_a_counter_adds_a_gauge_sets_and_a_histogram_observes(metrics: Metrics) -> None:
    metrics.count("task.success", task="writer")
    metrics.count("task.success", 2.5, task="writer")
    metrics.count("task.success", 0, task="critic")
    metrics.gauge("workflow.queued", 3)
    metrics.gauge("workflow.queued", 1)
    metrics.observe("task.duration_ms", 12.3, task="writer")
    metrics.observe("task.duration_ms", 4000, task="writer")
    assert metrics.value("task.success", task="writer") == 3.5
    assert metrics.value("task.success", task="critic") == 0.0
    assert metrics.value("workflow.queued") == 1.0
    text = metrics.text().decode()
    assert 'task_success_total{task="writer"} 3.5' in text
    assert 'task_duration_ms_bucket{le="25.0",task="writer"} 1.0' in text
    assert 'task_duration_ms_sum{task="writer"} 4012.3' in text


def test_a_watched_gauge_shows_what_is_read_at_the_moment(metrics: Metrics) -> None:
    readings = iter([3.0, 1.0])
    metrics.watch("ai.requests_per_second", lambda: next(readings), model="m")
    metrics.gauge("ai.requests_per_second", 77, model="m")
    metrics.gauge("ai.requests_per_second", 5, model="other")
    assert metrics.value("ai.requests_per_second", model="m") == 3
    assert 'ai_requests_per_second{model="m"} 1.0' in metrics.text().decode()
    metrics.watch("workflow.queued", lambda: 9)
    metrics.watch("ai.requests_per_second", lambda: 8, model="m")
    assert (metrics.value("workflow.queued"), metrics.value("ai.requests_per_second", model="m")) == (9, 8)
    with pytest.raises(ValueError, match="is a counter, not a gauge"):
        metrics.watch("ai.cache.hit", lambda: 1)
    with pytest.raises(ValueError, match="labels"):
        metrics.watch("workflow.queued", lambda: 1, model="m")


def test_labels_may_be_given_in_any_order_and_may_be_words_of_python(metrics: Metrics) -> None:
    metrics.count("ai.fallback", **{"from": "pro", "to": "flash", "reason": "quota"})
    metrics.count("ai.fallback", reason="quota", to="flash", **{"from": "pro"})
    assert metrics.value("ai.fallback", to="flash", reason="quota", **{"from": "pro"}) == 2.0


def test_an_unknown_name_is_an_error_at_once(metrics: Metrics) -> None:
    with pytest.raises(KeyError, match=r"task\.sucess"):
        metrics.count("task.sucess", task="writer")
    with pytest.raises(KeyError):
        metrics.value("task_success", task="writer")


@pytest.mark.parametrize("labels", [{}, {"tsak": "writer"}, {"task": "writer", "model": "m"}])
def test_an_unknown_or_missing_label_is_an_error_at_once(metrics: Metrics, labels: dict[str, str]) -> None:
    metrics.count("task.success", task="writer")
    with pytest.raises(ValueError, match="labels"):
        metrics.count("task.success", **labels)


def test_the_wrong_kind_is_an_error_at_once(metrics: Metrics) -> None:
    metrics.gauge("workflow.queued", 1)
    with pytest.raises(ValueError, match="is a gauge, not a counter"):
        metrics.count("workflow.queued")
    with pytest.raises(ValueError, match="is a counter, not a histogram"):
        metrics.observe("task.success", 1, task="writer")


def test_a_counter_never_goes_down(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        metrics.count("ai.cache.hit", -1)


def test_metrics_of_two_instances_are_apart_and_the_process_has_one() -> None:
    one, other = Metrics(), Metrics()
    one.count("ai.cache.hit")
    assert (one.value("ai.cache.hit"), other.value("ai.cache.hit")) == (1.0, 0.0)
    assert isinstance(telemetry.metrics, Metrics)


def test_no_series_comes_twice_as_its_time_of_creation(metrics: Metrics) -> None:
    metrics.count("task.success", task="writer")
    metrics.observe("task.duration_ms", 1, task="writer")
    assert "_created" not in metrics.text().decode()


def test_the_content_type_is_that_of_the_text(metrics: Metrics) -> None:
    assert METRICS_CONTENT_TYPE.split(";")[0] == prometheus_client.CONTENT_TYPE_PLAIN_0_0_4.split(";")[0]
    assert prometheus_client.CONTENT_TYPE_PLAIN_0_0_4 == METRICS_CONTENT_TYPE
    assert re.match(rb"# HELP \w+", metrics.text())


def logged(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_changes_ride_on_the_log_even_when_it_is_quiet(metrics: Metrics, log: io.StringIO) -> None:
    metrics.count("task.success", task="writer")
    metrics.log_changes(MetricLog(logging.getLogger("tests.metrics"), seconds=3600))
    metrics.count("task.failure", 2, task="writer", error="RateLimited")
    metrics.gauge("workflow.queued", 4)
    assert log.getvalue() == ""
    metrics.log_changes(None)
    metrics.gauge("workflow.queued", 5)
    lines = logged(log)
    assert [(line["metric"], line["kind"], line["value"], line["labels"]) for line in lines] == [
        ("task.failure", "counter", 2, {"task": "writer", "error": "RateLimited"}),
        ("workflow.queued", "gauge", 4, {}),
    ]
    assert (lines[0]["severity"], lines[0]["message"]) == ("INFO", "metric")


def test_a_series_is_one_line_however_often_it_changes(metrics: Metrics, log: io.StringIO) -> None:
    metrics.log_changes(MetricLog(logging.getLogger("tests.metrics"), seconds=3600))
    for number in range(1000):
        metrics.count("task.success", task="writer")
        metrics.gauge("workflow.queued", number)
        metrics.observe("task.duration_ms", number, task="writer")
    metrics.log_changes(None)
    counted, gauged, observed = logged(log)
    assert (counted["value"], gauged["value"]) == (1000, 999)
    assert (observed["value"], observed["count"], observed["max"]) == (pytest.approx(499.5), 1000, 999)


def test_what_changed_is_logged_once_the_time_is_over_and_then_only_what_changes_again(metrics: Metrics, log: io.StringIO) -> None:
    metrics.log_changes(MetricLog(logging.getLogger("tests.metrics"), seconds=0.02))
    for expected in (1, 2):
        metrics.count("ai.cache.hit")
        deadline = time.monotonic() + 10
        while log.getvalue().count("\n") < expected:
            assert time.monotonic() < deadline
            time.sleep(0.002)
    metrics.log_changes(None)
    assert [line["value"] for line in logged(log)] == [1, 1]


def test_a_function_in_the_cloud_logs_what_changed_when_it_ends() -> None:
    code = (
        "from shared.runtime.process import open_runtime; from shared.telemetry import metrics; open_runtime(serves=('writer',));"
        "metrics.count('task.success', 3, task='writer')"
    )
    given = {"K_SERVICE": "writer", "GCP_PROJECT_ID": "acme", "LOG_LEVEL": "error", "PYTHONPATH": str(ROOT)}
    for variables, lines in ((given, 1), ({**given, "K_SERVICE": None}, 0)):
        environment = {name: value for name, value in variables.items() if value is not None}
        ended = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        written = [json.loads(line) for line in ended.stderr.splitlines()]
        assert len(written) == lines
        for line in written:
            assert (line["metric"], line["value"], line["labels"]) == ("task.success", 3, {"task": "writer"})
            assert (line["severity"], line["message"], line["logger"]) == ("INFO", "metric", "metrics")


# The table, the code and the documentation

SOURCES = [*sorted((ROOT / "shared").rglob("*.py")), *sorted((ROOT / "functions").rglob("*.py"))]
SETTERS = {"count": "counter", "gauge": "gauge", "watch": "gauge", "observe": "histogram"}


def set_in(source: str) -> Iterator[tuple[str, str]]:
    """Kind and name of each metric that this code sets; of a name that is looked up in a table, all of the table's."""
    tree = ast.parse(source)
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    tables = {target.id: node.value for node in assigned for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="metrics"), attr=setter), args=[name, *_]) if setter in SETTERS:
                where = tables[name.value.id] if isinstance(name, ast.Subscript) and isinstance(name.value, ast.Name) else name
                for value in where.values if isinstance(where, ast.Dict) else [where]:
                    yield SETTERS[setter], ast.literal_eval(value)


def test_every_metric_that_is_declared_is_set_somewhere_and_the_other_way_round() -> None:
    assert {found for path in SOURCES for found in set_in(path.read_text())} == {(one.kind, one.name) for one in DECLARED}


def test_the_documentation_has_every_metric_with_its_labels_and_meaning() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \| (.*?) \| (.*?) \|$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert rows == [(one.name, one.kind, ", ".join(one.labels), one.description) for one in DECLARED]
