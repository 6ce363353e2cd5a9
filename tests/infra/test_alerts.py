"""Every alert that operators were promised, with its thresholds, and a page of the runbook for each."""

import json
import re

import pytest

from tests.infra.conftest import Plan
from tests.support.promql import ambiguous

PROMISED = {
    "error-rate": (5, 10),
    "latency": (2000, 5000),
    "cpu": (70, 85),
    "memory": (75, 90),
    "rate-limit": (10, 50),
}


def conditions(plan: Plan, alert: str, level: str) -> list[dict[str, str]]:
    (condition,) = plan[f'google_monitoring_alert_policy.alert["{alert}/{level}"]']["conditions"]
    found: list[dict[str, str]] = condition["condition_prometheus_query_language"]
    return found


@pytest.mark.parametrize(("alert", "thresholds"), PROMISED.items(), ids=PROMISED)
def test_an_alert_has_the_thresholds_that_were_promised(plan: Plan, alert: str, thresholds: tuple[int, int]) -> None:
    for level, threshold in zip(("warning", "critical"), thresholds, strict=True):
        (condition,) = conditions(plan, alert, level)
        assert condition["query"].endswith(f"> {threshold}")


def test_every_query_says_of_which_resource_its_metrics_are(plan: Plan) -> None:
    queries = [
        language["query"]
        for address, values in plan.items()
        if address.startswith("google_monitoring_alert_policy.")
        for condition in values["conditions"]
        for language in condition["condition_prometheus_query_language"]
    ]
    assert len(queries) >= 28
    assert not [query for query in queries if ambiguous(query)]


def test_that_all_workflows_fail_is_told_where_none_succeeds(plan: Plan) -> None:
    for level in ("warning", "critical"):
        (condition,) = conditions(plan, "workflow-failures", level)
        assert re.search(r"workflow_succeeded_sum\{[^}]+\}\[30m\]\)\) or vector\(0\)", condition["query"])


def test_who_watches_a_workflow_does_not_make_the_platform_slow(plan: Plan) -> None:
    (condition,) = conditions(plan, "latency", "critical")
    assert "user_agent_team_answer_seconds_bucket" in condition["query"]
    metric = plan["google_logging_metric.answer"]
    (pattern,) = re.findall(r'NOT httpRequest\.requestUrl=~"([^"]+)"', metric["filter"])
    assert re.search(pattern, "https://a.example/v1/workflows/wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD/events?after=3")
    assert not re.search(pattern, "https://a.example/v1/workflows/wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD")
    (seconds,) = re.findall(r'^REGEXP_EXTRACT\(httpRequest\.latency, "(.+)"\)$', metric["value_extractor"])
    assert re.findall(seconds, "0.123s") == ["0.123"]


def test_a_receiver_that_is_away_wakes_nobody(plan: Plan) -> None:
    (condition,) = conditions(plan, "oldest-unacked", "critical")
    assert 'subscription_id!="workflow-results.webhook"' in condition["query"]


def test_health_checks_warn_after_two_failures_in_a_row_and_page_after_five(plan: Plan) -> None:
    for level, failures in (("warning", 2), ("critical", 5)):
        (condition,) = plan[f'google_monitoring_alert_policy.health["{level}"]']["conditions"]
        assert condition["condition_threshold"][0]["duration"] == f"{60 * failures}s"
    (probe,) = plan['google_cloud_run_v2_service.function["gateway"]']["template"][0]["containers"][0]["liveness_probe"]
    assert (probe["http_get"][0]["path"], probe["failure_threshold"]) == ("/health", 5)


@pytest.mark.parametrize(
    "alert", ["dead-letters", "dead-letter-depth", "oldest-unacked", "key-age", "model-spend", "workflow-failures"]
)
def test_what_else_goes_wrong_is_told_too(plan: Plan, alert: str) -> None:
    assert conditions(plan, alert, "warning")
    assert conditions(plan, alert, "critical")


def test_a_backup_that_is_missing_is_told_of_after_a_day(plan: Plan) -> None:
    assert {f'google_monitoring_alert_policy.backup["{level}"]' for level in ("warning", "critical")} <= plan.keys()


def test_every_alert_links_to_a_section_of_the_runbook(plan: Plan) -> None:
    policies = {address: values for address, values in plan.items() if address.startswith("google_monitoring_alert_policy.")}
    assert len(policies) >= 30
    for address, values in policies.items():
        (documentation,) = values["documentation"]
        (link,) = documentation["links"]
        assert link["url"].endswith(f"#alert-{values['user_labels']['alert']}"), address
        assert values["severity"] == values["user_labels"]["level"].upper()


def test_the_dashboards_charts_do_not_overlap(plan: Plan) -> None:
    tiles = json.loads(plan["google_monitoring_dashboard.platform"]["dashboard_json"])["mosaicLayout"]["tiles"]
    assert len({(tile["xPos"], tile["yPos"]) for tile in tiles}) == len(tiles) >= 12
