"""Approvals by link: the page, what it decides, and all that decides nothing."""

import html
import logging
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.gateway.api import create_app
from functions.gateway.models import Workflow
from shared.messages import ApprovalLink
from shared.runtime.signals import send_signal
from shared.runtime.travel import rerun
from shared.telemetry import metrics
from tests.support.doubles import SECRET, WORKFLOW
from tests.support.live import Live, completed, definition, live, start

STEPS = """
- {id: draft, agent: writer, input: {}}
- {id: ask, needs: [draft], approval: {prompt: "Send {{ steps.draft.output }}?", timeout_seconds: 86400}}
- {id: final, agent: critic, needs: [draft, ask], input: {said: "{{ steps.ask.output }}"}}
"""
PATH = f"/v1/workflows/{WORKFLOW}"


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path, API_RATE_PER_MINUTE="1000") as opened:
        yield opened


@pytest.fixture
async def client(team: Live) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(team) as opened:
        yield opened


def client_of(team: Live, key: str | None = None) -> httpx.AsyncClient:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app=create_app(team.runtime))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


async def asked(team: Live, steps: str = STEPS, draft: Any = "Dear Ann") -> None:
    """A workflow whose draft waits for its approval."""
    await team.runtime.dispatcher("intake").apply([start(definition(steps))])
    await team.runtime.dispatcher("orchestrator").apply([completed("draft", output=draft)])


async def step_of(client: httpx.AsyncClient, step: str = "ask") -> dict[str, Any]:
    document = (await client.get(PATH)).json()
    Workflow.model_validate_json(httpx.Request("GET", "http://x", json=document).content)
    found: dict[str, Any] = next(one for one in document["steps"] if one["id"] == step)
    return found


async def link_of(client: httpx.AsyncClient) -> str:
    """The link's path."""
    return str((await step_of(client))["links"]["approve"]).removeprefix("http://gateway")


async def decide(client: httpx.AsyncClient, link: str, **fields: str) -> httpx.Response:
    return await client.post(link, data=fields)


def text_of(answer: httpx.Response) -> str:
    """What people read."""
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", answer.text.partition("<body>")[2])).split())


async def test_the_page_tells_what_is_asked_and_decides_nothing_however_often_it_is_fetched(
    team: Live, client: httpx.AsyncClient
) -> None:
    await asked(team)
    link = await link_of(client)
    for _ in range(3):
        page = await client.get(link)
        assert (page.status_code, (await client.head(link)).status_code) == (200, 200)
    said = text_of(page)
    for expected in ("Your approval is asked for", "small v1", "step ask", "Send Dear Ann?", WORKFLOW, "Approve", "Reject"):
        assert expected in said
    assert (await step_of(client))["status"] == "WAITING"
    assert [one["type"] for one in await team.store.history(WORKFLOW)][-1] == "workflow.waiting"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_no_other_method_is_taken(team: Live, client: httpx.AsyncClient, method: str) -> None:
    await asked(team)
    assert (await client.request(method, await link_of(client), data={"decision": "approve"})).status_code == 405
    assert (await step_of(client))["status"] == "WAITING"


async def test_the_page_loads_nothing_runs_nothing_is_not_kept_and_tells_nobody_where_it_was(
    team: Live, client: httpx.AsyncClient
) -> None:
    await asked(team)
    page = await client.get(await link_of(client))
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy.pop("style-src").startswith("'sha256-")
    nothing = ("default-src", "base-uri", "frame-ancestors")
    assert policy == {**dict.fromkeys(nothing, "'none'"), "form-action": "'self'"}
    assert (page.headers["cache-control"], page.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert not re.search(r"<script|<link|<img|https?://| on\w+=", page.text)


async def test_who_approves_by_link_is_in_the_history_and_the_output(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    answer = await decide(client, await link_of(client), decision="approve", comment="Good\r\nto go.", name=" Ann \n Lee ")
    assert answer.status_code == 200
    assert "Approved by link: Ann Lee (not verified)" in text_of(answer)
    (told,) = [one for one in await team.store.history(WORKFLOW) if one["type"] == "workflow.signalled"]
    assert told["data"] == {"name": "ask", "decision": "approve", "by": "link: Ann Lee (not verified)", "comment": "Good\nto go."}
    assert told["at"]
    output = (await step_of(client))["output"]
    assert (output["decision"], output["by"]) == ("approve", "link: Ann Lee (not verified)")
    assert team.dispatched()[-1] == ("final", 1)


async def test_a_rejection_by_link_fails_the_step(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    assert "Rejected by link" in text_of(await decide(client, await link_of(client), decision="reject"))
    assert (await step_of(client))["error"] == {"type": "Rejected", "message": "rejected by link"}


@pytest.mark.parametrize(("text", "value"), [('{"text": "Dear Bob"}', {"text": "Dear Bob"}), ("Dear Bob,\r\nhi", "Dear Bob,\nhi")])
async def test_a_change_counts_instead_as_json_or_as_text(team: Live, client: httpx.AsyncClient, text: str, value: Any) -> None:
    await asked(team)
    assert (await decide(client, await link_of(client), decision="amend", value=text)).status_code == 200
    assert (await step_of(client))["output"]["value"] == value


async def test_a_link_is_good_once_and_then_tells_what_was_decided_first_and_by_whom(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    link = await link_of(client)
    await decide(client, link, decision="approve", name="Ann", comment="fine")
    for again in (await decide(client, link, decision="reject", name="Bob"), await client.get(link)):
        assert again.status_code == 410
        said = text_of(again)
        assert "decided already" in said
        assert "Approved by link: Ann (not verified)" in said
        assert "fine" in said
        assert "Bob" not in said
    assert len([one for one in await team.store.history(WORKFLOW) if one["type"] == "workflow.signalled"]) == 1


async def test_two_who_decide_at_the_same_moment_are_both_told_of_the_first(
    team: Live, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asked(team)
    link = await link_of(client)

    async def overtaken(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr("functions.gateway.approvals.send_signal", send_signal)
        await decide(client, link, decision="reject", name="Bob")
        return await send_signal(*arguments, **more)

    monkeypatch.setattr("functions.gateway.approvals.send_signal", overtaken)
    answer = await decide(client, link, decision="approve", name="Ann")
    assert answer.status_code == 410
    assert "Rejected by link: Bob (not verified)" in text_of(answer)


async def test_what_a_key_decided_is_told_to_a_link_too(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    link = await link_of(client)
    await client.post(f"{PATH}/signals/ask", json={"decision": "approve", "by": "carol"})
    answer = await decide(client, link, decision="reject")
    assert (answer.status_code, "Approved by carol" in text_of(answer)) == (410, True)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"comment": "fine"}, "choose one of the buttons"),
        ({"decision": "maybe"}, "choose one of the buttons"),
        ({"decision": "amend", "value": "  "}, "what shall count instead"),
        ({"decision": "amend", "value": "null"}, "what shall count instead"),
        ({"decision": "amend", "value": "[" * 70 + "]" * 70}, "more than 64 levels"),
        ({"decision": "approve", "comment": "x" * 2001}, "longer than 2,000"),
        ({f"field{number}": "" for number in range(11)}, "not what the form sends"),
    ],
)
async def test_what_is_no_answer_decides_nothing_and_says_why(
    team: Live, client: httpx.AsyncClient, fields: Mapping[str, str], problem: str
) -> None:
    await asked(team)
    answer = await decide(client, await link_of(client), **fields)
    assert (answer.status_code, problem in text_of(answer)) == (422, True)
    if "comment" in fields:
        assert fields["comment"] in answer.text, "what was typed is lost"
    assert (await step_of(client))["status"] == "WAITING"


async def test_a_form_that_is_none_decides_nothing(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    link = await link_of(client)
    assert (await client.post(link, json={"decision": "approve"})).status_code == 422
    head = {"content-type": "application/x-www-form-urlencoded"}
    assert (await client.post(link, content=b"decision=approve&name=%ff", headers=head)).status_code == 422
    assert (await client.post(link, content=b"decision=approve&comment=%00", headers=head)).status_code == 422
    large = await client.post(link, content=b"decision=approve&comment=" + b"x" * 600_000, headers=head)
    assert large.status_code == 413
    assert (await step_of(client))["status"] == "WAITING"


async def test_forged_altered_and_foreign_links_are_refused_whatever_they_name(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    link = await link_of(client)
    (body, _, seal) = link.removeprefix("/approve/").partition(".")
    for wrong in (
        f"{body}.",
        body,
        f".{seal}",
        f"{body}.{seal}x",
        f"{body}x.{seal}",
        f"{body}.{seal[::-1]}",
        "x",
        f"{body}.{seal}/x",
    ):
        for answer in (await client.get(f"/approve/{wrong}"), await decide(client, f"/approve/{wrong}", decision="approve")):
            assert (answer.status_code, WORKFLOW in answer.text) == (403, False), wrong
    for nothing in ("/approve", "/approve/"):
        assert (await client.get(nothing)).status_code == 404
    assert (await step_of(client))["status"] == "WAITING"


async def test_a_link_ends_with_its_approval_and_a_week_later_where_that_has_no_end(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team, STEPS.replace(", timeout_seconds: 86400", ""))
    link = await link_of(client)
    await team.clock.advance(7 * 86_400 - 2)
    assert (await client.get(link)).status_code == 200
    await team.clock.advance(2)
    for answer in (await client.get(link), await decide(client, link, decision="approve")):
        assert (answer.status_code, "expired" in text_of(answer)) == (410, True)
    assert (await client.get(await link_of(client))).status_code == 200, "a new one is made for as long as it waits"


async def test_a_link_of_an_approval_that_ran_out_of_time_has_expired(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    link = await link_of(client)
    await team.clock.advance(86_400)
    answer = await decide(client, link, decision="approve")
    assert (answer.status_code, "expired" in text_of(answer)) == (410, True)


async def test_a_link_of_a_workflow_that_was_cancelled_or_is_gone_says_so(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    link = await link_of(client)
    await client.post(f"{PATH}/cancel")
    answer = await decide(client, link, decision="approve")
    assert (answer.status_code, "nothing to decide" in text_of(answer)) == (410, True)
    gone = ApprovalLink("wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD", "ask", 1, 2_000_000_000).token(team.runtime.ring)
    assert (await client.get(f"/approve/{gone}")).status_code == 404
    nobody = ApprovalLink(WORKFLOW, "nobody", 1, 2_000_000_000).token(team.runtime.ring)
    assert (await client.get(f"/approve/{nobody}")).status_code == 410


async def test_a_link_of_the_run_before_does_not_decide_on_what_is_asked_anew(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    link = await link_of(client)
    await decide(client, link, decision="reject")
    await rerun(team.runtime, WORKFLOW, function="gateway")
    assert (await step_of(client))["status"] == "WAITING"
    answer = await decide(client, link, decision="approve")
    assert (answer.status_code, "asked anew" in text_of(answer)) == (410, True)
    assert (await decide(client, await link_of(client), decision="approve")).status_code == 200


async def test_what_a_model_wrote_is_text_on_the_page(team: Live, client: httpx.AsyncClient) -> None:
    attack = '</pre><script>alert(1)</script><img src=x onerror=alert(1)>" $body ${title} {{ x }} &lt;'
    await asked(team, draft=attack)
    link = await link_of(client)
    page = await client.get(link)
    assert "<script" not in page.text
    assert "<img" not in page.text
    assert html.escape(attack) in page.text
    wrong = await decide(client, link, decision="none", comment=attack, name=f'"{attack}', value=attack)
    kept = 'value="' + html.escape('"' + attack) + '"'
    assert (wrong.status_code, "<script" in wrong.text, kept in wrong.text) == (422, False, True)
    await decide(client, link, decision="approve", comment=attack, name=attack)
    after = await client.get(link)
    assert (after.status_code, "<script" in after.text, html.escape(attack) in after.text) == (410, False, True)


async def test_only_callers_who_may_decide_get_the_link(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    keys = {scope: await team.store.keys.add(scope, scope) for scope in ("read", "submit", "admin")}
    await team.clock.advance(60)
    for scope, key in keys.items():
        async with client_of(team, key) as caller:
            step = await step_of(caller)
            assert ("links" in step) is (scope != "read")
            assert "links" not in await step_of(caller, "draft")
            assert ("/approve/" in (await caller.get(f"{PATH}/history")).text) is False
    async with client_of(team, keys["submit"]) as caller, client_of(team) as stranger:
        link = await link_of(caller)
        assert (await decide(stranger, link, decision="approve")).status_code == 200


async def events_of(team: Live, key: str) -> str:
    async with client_of(team, key) as caller:
        return (await caller.get(f"{PATH}/events")).text


async def test_the_stream_of_events_gives_the_link_to_whoever_may_decide(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    link = await link_of(client)
    keys = {scope: await team.store.keys.add(scope, scope) for scope in ("read", "submit")}
    await decide(client, link, decision="reject")
    assert link in await events_of(team, keys["submit"])
    assert "/approve/" not in await events_of(team, keys["read"])


async def test_links_begin_with_the_public_url_or_with_what_was_asked(database: str, tmp_path: Path) -> None:
    async def base(forwarded: str, **variables: Any) -> str:
        async with live(database, tmp_path, **variables) as team, client_of(team) as client:
            if (await client.get(PATH)).status_code == 404:
                await asked(team)
            answer = (await client.get(PATH, headers={"x-forwarded-proto": forwarded, "host": "team.example.com"})).json()
            return str(next(one for one in answer["steps"] if one["id"] == "ask")["links"]["approve"]).partition("/approve/")[0]

    assert await base("https") == "http://team.example.com"
    assert await base("https", API_PROXY_HOPS="1") == "https://team.example.com"
    assert await base("https, http", API_PROXY_HOPS="1") == "http://team.example.com"
    assert await base("http", PUBLIC_URL="https://people.example.com/team/") == "https://people.example.com/team"


async def test_the_limit_of_requests_holds_for_links(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path, API_RATE_PER_MINUTE="3") as team, client_of(team) as client:
        statuses = [(await client.get(f"/approve/guess{number}")).status_code for number in range(5)]
    assert statuses == [403, 403, 403, 429, 429]


async def test_a_key_that_no_longer_signs_still_opens_what_it_sealed(database: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"COMM_HMAC_KEY_V1": SECRET, "COMM_HMAC_KEY_V2": SECRET[::-1]}
    async with live(database, tmp_path, COMM_HMAC_ACTIVE_KEY_ID="v1", **keys) as team, client_of(team) as client:
        await asked(team)
        link = await link_of(client)
    async with live(database, tmp_path, COMM_HMAC_ACTIVE_KEY_ID="v2", **keys) as team, client_of(team) as client:
        assert (await client.get(link)).status_code == 200
    del keys["COMM_HMAC_KEY_V1"]
    async with (
        live(
            database, tmp_path, COMM_HMAC_ACTIVE_KEY_ID="v2", COMM_HMAC_DEFAULT_SECRET="d" * 40, COMM_HMAC_KEY_V2=SECRET[::-1]
        ) as (team),
        client_of(team) as client,
    ):
        assert (await client.get(link)).status_code == 403


async def test_the_token_is_in_no_log_and_no_metric(
    team: Live, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asked(team)
    link = await link_of(client)
    (_, _, token) = link.rpartition("/")
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client's own
    caplog.clear()
    await client.get(link)
    await client.get(f"{link}x")
    await decide(client, link, decision="none")

    async def broken(*_arguments: Any, **_more: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(team.store, "get", broken)
        assert (await client.get(link)).status_code == 500
    await decide(client, link, decision="approve")
    assert {"request failed", "a link to an approval is not valid", "workflow signalled"} <= {one.message for one in caplog.records}
    told = "\n".join(str(vars(record)) for record in caplog.records)
    assert token not in told + metrics.text().decode()
    assert token.partition(".")[0] not in told + metrics.text().decode()


async def test_a_server_that_logs_the_path_of_a_request_does_not_get_to_see_the_token(team: Live) -> None:
    app = create_app(team.runtime)
    scope: dict[str, Any] = {
        **{"type": "http", "method": "GET", "path": "/approve/a.b", "raw_path": b"/approve/a.b", "query_string": b""},
        **{"headers": [], "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1), "server": ("gateway", 80)},
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    assert statuses == [403]
    assert (scope["path"], scope["raw_path"]) == ("/approve", b"/approve")
