"""The way in: TLS, a limit for each client, and nobody but Cloudflare where there is a zone."""

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from tests.infra.conftest import Plan


def rules(plan: Plan) -> dict[int, Any]:
    return {rule["priority"]: rule for rule in plan["google_compute_security_policy.edge"]["rule"]}


def test_a_client_has_a_hundred_requests_a_minute(plan: Plan) -> None:
    throttles = [rule for rule in rules(plan).values() if rule["action"] == "throttle"]
    assert throttles
    for rule in throttles:
        (options,) = rule["rate_limit_options"]
        (threshold,) = options["rate_limit_threshold"]
        assert (threshold["count"], threshold["interval_sec"]) == (100, 60)


def test_old_tls_is_refused_and_plain_http_is_sent_on(plan: Plan) -> None:
    policy = plan["google_compute_ssl_policy.edge"]
    assert (policy["profile"], policy["min_tls_version"]) == ("RESTRICTED", "TLS_1_2")
    (redirect,) = plan["google_compute_url_map.to_https"]["default_url_redirect"]
    assert redirect["https_redirect"]


def test_the_certificate_is_renewed_wherever_the_domain_leads(plan: Plan) -> None:
    """Behind Cloudflare the A record leads to Cloudflare: a certificate that goes by it ends after three months."""
    assert not [address for address in plan if address.startswith("google_compute_managed_ssl_certificate.")]
    domain = plan["google_certificate_manager_dns_authorization.edge"]["domain"]
    assert plan["google_certificate_manager_certificate.edge"]["managed"][0]["domains"] == [domain]
    assert plan["google_certificate_manager_certificate_map_entry.edge"]["hostname"] == domain
    assert not plan["google_compute_target_https_proxy.edge"].get("ssl_certificates")


def test_with_a_zone_only_cloudflare_gets_in(make_plan: Callable[..., Plan]) -> None:
    found = rules(make_plan("production", f"cloudflare_zone_id={'0123456789abcdef' * 2}"))
    assert found[2147483647]["action"] == "deny(403)"
    named = [rule for rule in found.values() if rule["action"] == "throttle"]
    assert len(named) == 3
    for rule in named:
        assert rule["match"][0]["config"][0]["src_ip_ranges"] != ["*"]
        assert rule["rate_limit_options"][0]["enforce_on_key_name"] == "CF-Connecting-IP"


def test_everything_in_the_network_is_closed_from_outside(plan: Plan) -> None:
    firewall = plan["google_compute_firewall.deny_ingress"]
    assert (firewall["direction"], firewall["source_ranges"], firewall["deny"][0]["protocol"]) == ("INGRESS", ["0.0.0.0/0"], "all")
    (redis,) = [values for address, values in plan.items() if address.startswith("google_redis_instance.")]
    assert redis["auth_enabled"]
    assert redis["transit_encryption_mode"] == "SERVER_AUTHENTICATION"


def test_there_is_an_address_for_every_instance_twice_over_and_again_during_a_canary(plan: Plan) -> None:
    services = [values for address, values in plan.items() if address.startswith("google_cloud_run_v2_service.function[")]
    instances = sum(service["template"][0]["scaling"][0]["max_instance_count"] for service in services)
    network = ip_network(plan["google_compute_subnetwork.functions"]["ip_cidr_range"])
    assert network.num_addresses > 2 * 2 * instances


def test_backups_lie_in_another_region_and_are_kept_for_a_week(plan: Plan) -> None:
    bucket = plan["google_storage_bucket.backups"]
    assert bucket["location"] == "us-east1"
    assert int(bucket["retention_policy"][0]["retention_period"]) == 7 * 86_400
    assert bucket["public_access_prevention"] == "enforced"


def test_wrong_variables_are_refused_before_anything_is_made(check: Callable[..., Path]) -> None:
    assert check("production", tests=True)
