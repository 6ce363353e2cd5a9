"""The documentation says what the code does: commands, variables, alerts, functions, links."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.settings_page import page as settings_page
from shared.config import Settings, variable_of
from shared.runtime.spec import load_functions
from shared.telemetry.metrics import DECLARED
from tests.support.documentation import (
    DEPLOY,
    PAGES,
    ROOT,
    RUNBOOK,
    SECURITY,
    SETTINGS,
    Command,
    blocks,
    commands,
    links,
    refusal,
    slugs,
    text_of,
    verb_of,
    verbs,
)

FUNCTIONS: dict[str, dict[str, Any]] = {
    file.parent.name: yaml.safe_load(file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "functions").glob("*/function.yaml"))
}
INFRA = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "infra").glob("*.tf")))
VARIABLES = {variable_of(field) for field in Settings.model_fields} | {"APP_ENV"}
RUNNING_KEYS = set(re.findall(r'signing_keys\s+= "(\w+)"', INFRA))
"""The secret that is read while functions run, and is no variable."""
AGENTS = {name for name, spec in load_functions().items() if spec.is_agent}


def service(function: str) -> str:
    return function.replace("_", "-")


def readers(secret: str) -> set[str]:
    """The services whose functions have a secret."""
    return {service(name) for name, function in FUNCTIONS.items() if secret in function.get("secrets", [])}


@pytest.mark.parametrize("command", commands("agent-team"), ids=str)
def test_a_command_that_is_told_is_one_that_there_is(command: Command) -> None:
    assert refusal(command) == ""


def test_every_verb_is_shown_in_use() -> None:
    shown = {verb_of(command.words, verbs()) for command in commands("agent-team")}
    assert verbs() - shown == set()


def test_a_wrong_option_would_be_noticed() -> None:
    words = ("./agent-team", "dead-letters", "redrive", "--causes", "store")
    assert "No such option" in refusal(Command(RUNBOOK, 1, words, mentioned=False))
    assert "No such command" in refusal(Command(RUNBOOK, 1, ("agent-team", "key", "list"), mentioned=True))


@pytest.mark.parametrize("command", commands("make"), ids=str)
def test_a_target_that_is_told_is_in_the_makefile(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in command.words[1:]:
        name, given, _ = word.partition("=")
        pattern = rf"^{re.escape(name)}\s*\?=" if given else rf"^{re.escape(name)}:"
        assert re.search(pattern, makefile, re.MULTILINE), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_to_be_typed_is_what_a_shell_understands(page: Path) -> None:
    for line, text in blocks(page):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=10, check=False)
        assert done.returncode == 0, f"{page.name}:{line}: {done.stderr}"


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize("command", commands("jq"), ids=str)
def test_a_filter_that_is_told_is_one_that_jq_understands(command: Command) -> None:
    words = [word for word in command.words if not word.startswith(".agent-team/")]
    done = subprocess.run([*words, "/dev/null"], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_filters_of_the_log_find_what_they_should() -> None:
    def jq(*words: str, given: str) -> str:
        return subprocess.run(["jq", *words], input=given, capture_output=True, text=True, timeout=10, check=True).stdout

    told = [command.words[1:] for command in commands("jq", pages=(RUNBOOK,))]
    (entries_to_lines,) = [words for words in told if words[-1].startswith(".[] | {at: .timestamp")]
    payloads = [
        {"level": "error", "msg": "a"},
        {"level": "info", "msg": "b", "duration": 5001},
        {"level": "warn", "msg": "c: rate limit"},
        None,  # Cloud Run's own line about a request
    ]
    where = {"timestamp": "2026-11-25T02:00:00Z", "resource": {"labels": {"service_name": "writer"}}}
    entries = [{**where, **({} if payload is None else {"jsonPayload": payload})} for payload in payloads]
    lines = jq(*entries_to_lines, given=json.dumps(entries))
    assert lines.count('"function":"writer"') == len(entries)
    filters = [words[0] for words in told if words[0].startswith("select(")]
    assert [jq("-r", f"{one} | .msg", given=lines) for one in filters] == ["a\n", "b\n", "c: rate limit\n"]


@pytest.mark.parametrize("command", commands("curl", pages=(ROOT / "README.md", RUNBOOK, DEPLOY)), ids=str)
def test_a_call_that_is_told_is_one_of_the_api(command: Command) -> None:
    api = set(re.findall(r"^## `[A-Z]+ (/\S*)`$", text_of(ROOT / "docs" / "api.md"), re.MULTILINE))
    patterns = [re.sub(r"\\\{\w+\\\}", "[^/?]+", re.escape(path)) for path in api]
    for word in command.words:
        if path := re.match(r"https?://(?:127\.0\.0\.1:8080|\$DOMAIN|localhost:8080)(/[^?#]*)", word):
            assert any(re.fullmatch(pattern, path[1]) for pattern in patterns), word


def test_the_page_of_settings_is_up_to_date() -> None:
    assert text_of(SETTINGS) == settings_page(), "docs/settings.md is out of date; say make docs"
    for variable in VARIABLES - {"COMM_HMAC_KEYS"}:
        assert f"| `{variable}`" in settings_page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_variable_that_is_told_is_one_that_is_read(page: Path) -> None:
    families = "|".join(sorted({variable.split("_")[0] for variable in VARIABLES if "_" in variable}))
    told = set(re.findall(rf"(?<![\w<$])(?:{families})_[A-Z0-9_]+\b(?!\()", text_of(page)))
    known = VARIABLES | RUNNING_KEYS | {"COMM_HMAC_KEY_", "NODE_ENV"}
    assert {name for name in told if name not in known and not re.fullmatch(r"COMM_HMAC_KEY_[A-Z0-9]+", name)} == set()


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    alerts = set(re.findall(r'^    "?([a-z-]+)"? = \{\n      title ', INFRA, re.MULTILINE))
    alerts |= set(re.findall(r'user_labels = \{ alert = "([a-z-]+)"', INFRA))
    assert len(alerts) >= 16
    assert {slug.removeprefix("alert-") for slug in slugs(RUNBOOK) if slug.startswith("alert-")} == alerts
    for alert in alerts:
        (row,) = re.findall(rf"^\| \[{alert}\]\(#alert-{alert}\).*\|$", text_of(RUNBOOK), re.MULTILINE)
        assert row.count("|") == 4


def test_the_thresholds_that_the_runbook_tells_are_those_of_the_alerts() -> None:
    found = re.findall(
        r'^    "([a-z-]+)" = \{(?:\n      .*)*?\n      over  = \{ warning = (\d+), critical = (\d+) \}', INFRA, re.MULTILINE
    )
    thresholds = {alert: levels for alert, *levels in found}
    assert len(thresholds) >= 12
    seconds_or_counts = {"latency", "oldest-unacked", "dead-letters", "dead-letter-depth", "guards-outage"}
    for alert in thresholds.keys() - seconds_or_counts:
        row = re.search(rf"^\| \[{alert}\]\S* \| (\d+)\b.*? \| (\d+)\b", text_of(RUNBOOK), re.MULTILINE)
        assert row is not None, alert
        assert list(row.groups()) == thresholds[alert], alert
    assert (thresholds["latency"], thresholds["oldest-unacked"]) == (["2000", "5000"], ["900", "3600"])
    assert "95th percentile | 2 s | 5 s |" in text_of(RUNBOOK)
    assert "(#alert-oldest-unacked) | 15 minutes | 1 hour |" in text_of(RUNBOOK)


def test_what_rolls_a_release_back_is_told_as_it_is() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "release.py"))
    stages = script["STAGES"]
    assert [limit for _, limit in script["LIMITS"].values()] == [5.0, 5000.0, 30.0]
    told = re.sub(r"\s+", " ", text_of(RUNBOOK).partition("\n## Deploy\n")[2])
    assert "fail more than 5 % of requests, the gateway's 95th percentile is above 5 s, or more than 30 % of workflows fail" in told
    assert f"{', '.join(f'{stage} %' for stage in stages[:-1])} and {stages[-1]} % of the traffic" in told


def test_the_runbook_tells_what_to_do_about_every_alert() -> None:
    sections = re.split(r"^### Alert: ", text_of(RUNBOOK).partition("\n## Database connections exhausted")[0], flags=re.MULTILINE)[
        1:
    ]
    for section in sections:
        title = section.partition("\n")[0]
        assert "**Means**" in section, title
        assert "**Escalate**" in section or "**escalate**" in section, title
        assert "```sh\n" in section, title


def test_a_metric_that_the_runbook_names_is_one_that_there_is() -> None:
    names = {metric.name for metric in DECLARED}
    families = "|".join(sorted({name.split(".")[0] for name in names}))
    events = {"step.deferred", "step.dispatched", "step.completed", "step.failed"}
    for page in (RUNBOOK, DEPLOY, SECURITY):
        told = set(re.findall(rf'[`"]((?:{families})\.[a-z_.]+)[`"]', text_of(page)))
        assert told - names - events == set(), page.name


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs" / "decisions").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


def test_the_table_of_who_may_do_what_is_what_the_functions_say() -> None:
    def row(function: dict[str, Any]) -> str:
        by = (
            "HTTP" if "http" in one else f"schedule `{one['schedule']}`" if "schedule" in one else f"`{one['topic']}`"
            for one in function["triggers"]
        )
        may = ((", ".join(f"`{one}`" for one in function.get(key, [])) or "-") for key in ("publishes", "secrets"))
        return f"| `{function['name']}` | {', '.join(by)} | {' | '.join(may)} |"

    table = text_of(SECURITY).partition("| function | called by |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [row(function) for function in FUNCTIONS.values()]
    assert table == rows, "docs/security.md must say:\n" + "\n".join(rows)


def test_accounts_that_are_no_functions_are_told_of() -> None:
    others = set(
        re.findall(r'^ *account_id +=? *"([a-z-]+)"', INFRA + (ROOT / "infra/bootstrap/main.tf").read_text(), re.MULTILINE)
    )
    table = text_of(SECURITY).partition("Other accounts:")[2].partition("\n\n## ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == others


def test_every_secret_gets_its_value_when_the_platform_is_set_up() -> None:
    (shared,) = re.findall(r"shared_secrets = concat\((.+)\)", INFRA)
    secrets = {secret for function in FUNCTIONS.values() for secret in function.get("secrets", [])}
    secrets |= set(re.findall(r'"([A-Z_]+)"', shared))
    for secret in secrets:
        given = r"^\./agent-team keys add$" if secret in RUNNING_KEYS else rf"(?:^secret|versions add) {secret}\b"
        assert re.search(given, text_of(DEPLOY), re.MULTILINE), f"{secret} gets no value"


def test_what_is_changed_by_hand_is_changed_everywhere() -> None:
    """A limit that one agent does not know of is no limit; a secret that one function does not have any more breaks it."""
    changes = [command for command in commands("set_variable", pages=(RUNBOOK,)) if len(command.words) > 1]
    assert changes
    for _, pair, *services in (command.words for command in changes):
        assert pair.partition("=")[0] in VARIABLES
        assert set(services) == (AGENTS if pair.startswith(("AI_", "ENABLE_")) else {"gateway", "intake"}), pair
    (loop,) = re.findall(r"versions add GEMINI_API_KEY .+\nfor service in ([a-z -]+); do", text_of(RUNBOOK))
    assert set(loop.split()) == readers("GEMINI_API_KEY")
    (listed,) = re.findall(r"#rotate-another-secret\) in `([a-z -]+)` before", text_of(RUNBOOK))
    assert set(listed.split()) == readers("DATABASE_URL")


def test_the_limits_that_the_runbook_tells_are_those_of_the_code() -> None:
    from shared.ai.catalog import CATALOG

    for model in ("gemini-2.5-pro", "gemini-1.5-pro", "gemini-1.5-flash"):
        limit = CATALOG[model].limit
        assert f"| calls of {model} | {limit.qps:g} a second, burst {limit.burst:g}, {limit.per_day:,} a day |" in text_of(RUNBOOK)
    for model in re.findall(r"AI_MODEL_DEFAULT=(\S+)", text_of(RUNBOOK)):
        assert model in CATALOG
