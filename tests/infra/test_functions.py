"""Every function has what it needs to run, and may do nothing else."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from shared.runtime.spec import load_functions
from shared.telemetry.metrics import DECLARED
from tests.infra.conftest import PROJECT, Plan

SPECS = load_functions()
AGENTS = {name for name, spec in SPECS.items() if spec.is_agent}
SIGNED_OUT = "allUsers"


def keys(plan: Plan, kind: str) -> set[str]:
    """The keys that instances of a resource have: `kind` is its type and name."""
    return {address.removeprefix(f'{kind}["').removesuffix('"]') for address in plan if address.startswith(f'{kind}["')}


def test_every_function_has_its_service_and_an_account_of_its_own(plan: Plan) -> None:
    assert keys(plan, "google_cloud_run_v2_service.function") == SPECS.keys()
    accounts = [plan[f'google_service_account.function["{name}"]']["account_id"] for name in SPECS]
    assert len(set(accounts)) == len(SPECS)


def test_every_service_is_as_its_function_says(plan: Plan) -> None:
    for name, spec in SPECS.items():
        (template,) = plan[f'google_cloud_run_v2_service.function["{name}"]']["template"]
        (container,) = template["containers"]
        environment = {one["name"]: one.get("value") for one in container["env"]}
        assert environment["FUNCTION_TARGET"] == name
        assert container["resources"][0]["limits"]["memory"] == spec.memory
        assert template["timeout"] == f"{spec.timeout_seconds:g}s"
        assert template["max_instance_request_concurrency"] == spec.concurrency
        assert template["scaling"][0]["min_instance_count"] == 0


def test_every_topic_of_a_function_is_pushed_to_it_as_it_is_locally(plan: Plan) -> None:
    expected = {one.name: one for spec in SPECS.values() for one in spec.subscriptions()}
    assert keys(plan, "google_pubsub_subscription.push") == expected.keys()
    for name, subscription in expected.items():
        planned = plan[f'google_pubsub_subscription.push["{name}"]']
        (retry,) = planned["retry_policy"]
        assert planned["ack_deadline_seconds"] == subscription.ack_deadline_seconds
        assert retry["minimum_backoff"] == f"{subscription.min_backoff_seconds:g}s"
        assert retry["maximum_backoff"] == f"{subscription.max_backoff_seconds:g}s"
        assert planned["message_retention_duration"] == "86400s"
        assert planned["push_config"][0]["oidc_token"], f"{name} shows no token"
        if subscription.dead_letter_topic is None:
            assert planned["dead_letter_policy"] == []
        else:
            assert planned["dead_letter_policy"][0]["max_delivery_attempts"] == subscription.max_attempts
            assert f'google_pubsub_subscription_iam_member.forwarded["{name}"]' in plan


def test_cloud_run_takes_the_tokens_that_pushes_show_and_the_door_asks_for_the_same(plan: Plan) -> None:
    for name, spec in SPECS.items():
        service = plan[f'google_cloud_run_v2_service.function["{name}"]']
        asked = {one["name"]: one.get("value") for one in service["template"][0]["containers"][0]["env"]}["PUSH_AUDIENCE"]
        pushes = [plan[f'google_pubsub_subscription.push["{one.name}"]']["push_config"][0] for one in spec.subscriptions()]
        assert {push["oidc_token"][0]["audience"] for push in pushes} <= {asked}
        assert service["custom_audiences"] == [asked]


def test_terraform_names_no_revision_that_the_pipeline_has_named() -> None:
    """A kept name would be given to the next revision too: "already exists", and no apply after the first release."""
    services = (PROJECT / "infra" / "services.tf").read_text(encoding="utf-8")
    (ignored,) = re.findall(r"ignore_changes = \[\n(.+?)\n    \]", services, re.DOTALL)
    lines = {line.strip(" ,") for line in ignored.splitlines()}
    assert {"template[0].containers[0].image", "traffic"} <= lines
    assert not [line for line in lines if line.endswith(("template", "template[0]", ".revision"))]


def test_an_agent_publishes_to_workflow_events_alone(plan: Plan) -> None:
    allowed = keys(plan, "google_pubsub_topic_iam_member.publisher")
    assert {one for one in allowed if one.partition("/")[2] in AGENTS} == {f"workflow-events/{agent}" for agent in AGENTS}


def test_nobody_but_the_scheduler_publishes_to_schedules(plan: Plan) -> None:
    assert not [one for one in keys(plan, "google_pubsub_topic_iam_member.publisher") if one.startswith("workflow-schedules/")]


def test_no_agent_reads_a_secret_that_it_does_not_need(plan: Plan) -> None:
    readers = {tuple(one.split("/")) for one in keys(plan, "google_secret_manager_secret_iam_member.function")}
    assert {name for secret, name in readers if secret in ("DATABASE_URL", "SUPABASE_SERVICE_ROLE_KEY")} & AGENTS == set()
    shared = {"SENTRY_DSN", "REDIS_URL"}
    assert readers == {(secret, name) for name, spec in SPECS.items() for secret in {*spec.secrets, *shared} - {"COMM_HMAC_KEYS"}}


def test_a_function_fetches_its_secrets_itself_and_is_told_where_to_go_with_them(plan: Plan) -> None:
    for name, spec in SPECS.items():
        (template,) = plan[f'google_cloud_run_v2_service.function["{name}"]']["template"]
        environment = {one["name"]: one for one in template["containers"][0]["env"]}
        assert environment["SECRETS_FROM"]["value"] == "secret-manager"
        assert not [one for one in environment.values() if one.get("value_source")]
        assert ("AGENT_TEAM_URL" in environment) == ("AGENT_TEAM_API_KEY" in spec.secrets)
        assert ("SUPABASE_URL" in environment) == ("SUPABASE_SERVICE_ROLE_KEY" in spec.secrets)


def test_every_function_reads_the_signing_keys_and_the_key_rotator_alone_changes_them(plan: Plan) -> None:
    kind = "google_secret_manager_secret_iam_member"
    assert keys(plan, f"{kind}.signing_keys") == {f"{name}/{role}" for name in SPECS for role in ("secretAccessor", "viewer")}
    # The role's id is known only once it is made: whatever is not one of these two would be another grant.
    changing = {address for address in plan if address.startswith(f"{kind}.") and "key_rotator" in address.partition("[")[0]}
    assert changing == {f"{kind}.key_rotator"}
    allowed = set(plan["google_project_iam_custom_role.key_rotator"]["permissions"])
    assert not [one for one in allowed if one.endswith((".delete", ".setIamPolicy", ".destroy", ".access"))]


def test_the_signing_keys_rotate_every_90_days_and_secret_manager_alone_tells_of_it(plan: Plan) -> None:
    secret = plan["google_secret_manager_secret.signing_keys"]
    assert secret["secret_id"] == "COMM_HMAC_KEYS"
    assert secret["rotation"][0]["rotation_period"] == f"{90 * 24 * 3600}s"
    assert len(secret["topics"]) == 1
    member = plan["google_pubsub_topic_iam_member.rotation_notices"]["member"]
    assert member.endswith("@gcp-sa-secretmanager.iam.gserviceaccount.com")
    assert not [one for one in keys(plan, "google_pubsub_topic_iam_member.publisher") if one.startswith("key-rotation/")]


def test_no_function_has_a_role_on_the_project_beyond_writing_its_log(plan: Plan) -> None:
    roles = {(address, values["role"]) for address, values in plan.items() if address.startswith("google_project_iam_member.")}
    assert {role for address, role in roles if "function" in address} == {"roles/logging.logWriter"}
    assert not [address for address in plan if address.startswith(("google_project_iam_binding", "google_project_iam_policy"))]


def test_the_gateways_edge_alone_is_open(plan: Plan) -> None:
    everybody = {address for address, values in plan.items() if SIGNED_OUT in str(values.get("member", ""))}
    assert everybody == {'google_cloud_run_v2_service_iam_member.edge["gateway"]'}
    ways_in = {name: plan[f'google_cloud_run_v2_service.function["{name}"]']["ingress"] for name in SPECS}
    assert ways_in.pop("gateway") == "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER"
    assert set(ways_in.values()) == {"INGRESS_TRAFFIC_INTERNAL_ONLY"}
    assert not any(plan[f'google_cloud_run_v2_service.function["{name}"]']["invoker_iam_disabled"] for name in SPECS)


def test_no_secret_has_a_value_in_the_state(plan: Plan) -> None:
    assert not [address for address in plan if address.startswith("google_secret_manager_secret_version.")]


def test_folders_and_files_bring_their_resources_and_take_them_along(
    make_plan: Callable[..., Plan], plans: dict[str, Plan], tmp_path: Path
) -> None:
    for part in ("infra", "functions", "workflows"):
        shutil.copytree(PROJECT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", ".terraform*"))
    shutil.rmtree(tmp_path / "functions" / "triager")
    (tmp_path / "workflows" / "nightly.yaml").write_text(
        'name: nightly\nversion: 1\nschedule: "0 3 * * *"\nsteps: [{id: a, agent: planner}]\n', encoding="utf-8"
    )
    before, after = plans["production"], make_plan("production", project=tmp_path)
    gone, come = before.keys() - after.keys(), after.keys() - before.keys()
    assert gone
    assert all("triager" in address for address in gone)
    (job,) = come
    assert job == 'google_cloud_scheduler_job.workflow["nightly"]'
    assert (after[job]["schedule"], after[job]["time_zone"]) == ("0 3 * * *", "Etc/UTC")
    # Their first rotation is counted from when it is planned.
    same = after.keys() & before.keys() - {"google_secret_manager_secret.signing_keys"}
    assert not [address for address in same if after[address] != before[address]]


def test_only_who_has_to_calls_a_function(plan: Plan) -> None:
    over_http = {name for name, spec in SPECS.items() if any(trigger.http for trigger in spec.triggers)}
    timed = {name for name, spec in SPECS.items() if any(trigger.schedule for trigger in spec.triggers)}
    pushed = {name for name, spec in SPECS.items() if spec.subscriptions()}
    callers = {"edge": over_http, "pusher": pushed, "scheduler": timed, "smoke": SPECS.keys()}
    kind = "google_cloud_run_v2_service_iam_member"
    assert {address for address in plan if address.startswith(f"{kind}.")} == {
        f'{kind}.{caller}["{name}"]' for caller, names in callers.items() for name in names
    }


def test_outputs_are_kept_by_those_who_make_and_read_them_and_nobody_deletes(plan: Plan) -> None:
    keepers = {name for name, spec in SPECS.items() if spec.is_agent or "DATABASE_URL" in spec.secrets}
    assert keys(plan, "google_storage_bucket_iam_member.outputs") == keepers
    permissions = plan["google_project_iam_custom_role.outputs"]["permissions"]
    assert set(permissions) == {"storage.objects.create", "storage.objects.get", "storage.objects.update"}
    (rule,) = plan["google_storage_bucket.outputs"]["lifecycle_rule"]
    assert rule["condition"][0]["days_since_custom_time"] == 400


def test_every_metric_is_read_from_the_log_with_its_labels(plan: Plan) -> None:
    declared = {metric.name: set(metric.labels) for metric in DECLARED}
    assert keys(plan, "google_logging_metric.metric") == declared.keys()
    for name, labels in declared.items():
        planned = plan[f'google_logging_metric.metric["{name}"]']
        assert set(planned["label_extractors"] or ()) == labels, name
        assert f'jsonPayload.metric="{name}"' in planned["filter"]
