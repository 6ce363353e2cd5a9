"""Every alert that operators were promised, with its thresholds, and a page of the runbook for each."""

import json

import pytest

from tests.infra.conftest import Plan

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
