"""The verbs over HTTP against servers that do not behave: proxies, other programs, answers that get lost."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shared.cli import app as cli_app
from shared.cli import client
from tests.support.doubles import WORKFLOW
from tests.support.scripted import answer, scripted, stream

Run = Callable[..., Result]
KEY = "atk_not-to-be-seen-anywhere"
ACCEPTED = json.dumps({"id": WORKFLOW, "status": "QUEUED", "links": {}}).encode()
PAGE = b'{"items":[],"next_cursor":null}'
HTML = b"<html><body>Bad gateway</body></html>"
USAGE = {"model_calls": 1, "input_tokens": 10, "output_tokens": 5, "cost_microdollars": 7}
DONE = {
    **{"id": WORKFLOW, "workflow": "report", "version": 1, "status": "SUCCESS", "error": None, "usage": USAGE, "steps_total": 1},
    **{"created_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:02Z", "output": {"text": "the result"}},
}


class QuickClock:
    """A clock on which nobody has to wait."""

    slept: list[float]

    def __init__(self) -> None:
        self._elapsed = 0.0
        type(self).slept = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._elapsed += seconds


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `agent-team` in this process, with no environment but an API key, and no patience."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("AGENT_", "DATABASE_", "GEMINI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AGENT_TEAM_API_KEY", KEY)
    monkeypatch.setattr(client, "SystemClock", QuickClock)
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(cli_app.app, [str(one) for one in arguments], prog_name="agent-team")

    yield invoke
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def refused(result: Result, *parts: str) -> None:
    """It ended with 2 and one line that says why, after lines about further tries."""
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" s")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert KEY not in result.output
    assert "\x1b" not in result.output


def test_schedules_are_a_table_of_what_starts_by_itself(run: Run) -> None:
    one = {"workflow": "report", "cron": "0 6 * * 1", "catch_up": "skip", "decided_until": None, "last_run": None}
    shown = {
        "items": [
            {**one, "next_tick": "2026-01-05T06:00:00+00:00"},
            {**one, "workflow": "digest", "next_tick": None, "last_run": WORKFLOW},
        ]
    }
    with scripted([answer(200, json.dumps(shown).encode())] * 2) as server:
        lines = run("schedules", "--url", server.url).stdout.splitlines()
        assert json.loads(run("schedules", "--url", server.url, "--json").stdout) == shown
    assert [line.split("  ")[0] for line in lines] == ["workflow", "report", "digest"]
    assert "2026-01-05 06:00Z" in lines[1]
    assert lines[2].endswith(WORKFLOW)
    with scripted([answer(200, b'{"items":[]}')]) as server:
        assert "there are none" in run("schedules", "--url", server.url).stderr


# --- answers that are no gateway's ---


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (answer(200, HTML, "text/html"), ("does not answer like a gateway (HTTP 200, text/html)", "correct --url")),
        (answer(404, HTML, "text/html"), ("does not answer like a gateway (HTTP 404",)),
        (answer(500, HTML, "text/html"), ("does not answer like a gateway (HTTP 500",)),
        (answer(502, HTML, "text/html"), ("cannot do this now (HTTP 502)",)),
        (answer(200, b"[1, 2]"), ("does not answer like a gateway",)),
        (answer(200, b"{}"), ("answers otherwise than a gateway of this version",)),
        (answer(200, b'{"items":[{"id":"\\u001b[31m"}],"next_cursor":null}'), ("answers otherwise",)),
        (answer(301, b"", location="https://elsewhere.example/v1"), ("it points to https://elsewhere.example/v1",)),
        (
            answer(401, b'{"detail":"who are you?"}'),
            ("does not take the key in AGENT_TEAM_API_KEY (HTTP 401): who are you?; set AGENT_TEAM_API_KEY",),
        ),
        (answer(403, b'{"detail":"scope admin is needed"}'), ("(HTTP 403): scope admin is needed", "AGENT_TEAM_API_KEY")),
        (answer(422, b'{"detail":"limit: \\u001b[31mtoo\\nlarge"}'), ("refuses (HTTP 422): limit: [31mtoo large",)),
        (answer(404, b'{"detail":"there is none"}'), ("refuses: there is none",)),
        (answer(503, b'{"detail":"workflows are switched off"}'), ("(HTTP 503): workflows are switched off",)),
        (answer(503, b"{}", retry_after="3600"), ("cannot do this now (HTTP 503)",)),
        (answer(503, b"{}", retry_after="soon"), ("cannot do this now (HTTP 503)",)),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ("gives no answer (RemoteProtocolError)",)),
        (b"", ("gives no answer",)),
    ],
)
def test_whatever_answers_there_is_told_in_one_line(run: Run, given: bytes, parts: tuple[str, ...]) -> None:
    with scripted([given]) as server:
        refused(run("list", "--url", server.url), *parts)


def test_without_a_key_the_variable_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENT_TEAM_API_KEY")
    with scripted([answer(401, b"{}")]) as server:
        refused(run("list", "--url", server.url), "wants an API key (HTTP 401); set AGENT_TEAM_API_KEY to one of its keys")
        assert "authorization" not in server.requests[0].headers


def test_a_redirect_is_not_followed_so_that_the_key_stays_where_it_belongs(run: Run) -> None:
    with scripted([answer(200, PAGE)]) as other, scripted([answer(307, b"", location=f"{other.url}/v1/workflows")]) as server:
        refused(run("list", "--url", server.url), f"it points to {other.url}/v1/workflows")
        assert other.requests == []
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://127.0.0.1:1", "cannot be reached (connection refused); start `agent-team serve`"),
        ("nowhere", "--url 'nowhere' is not an address"),
        ("http://127.0.0.1:99999", "is not an address"),
        ("ftp://127.0.0.1", "is not an address"),
        ("http://", "is not an address"),
        ("http://me:secret@127.0.0.1:1", "the key in AGENT_TEAM_API_KEY"),
        ("http://127.0.0.1:1/?a=b", "holds more than an address"),
    ],
)
def test_an_address_that_leads_nowhere_is_told_in_one_line(run: Run, url: str, part: str) -> None:
    QuickClock.slept = []
    result = run("list", "--url", url)
    refused(result, part)
    assert "secret" not in result.output
    assert QuickClock.slept == [], "there is nothing to wait for"


def test_the_address_of_the_environment_is_used_and_an_option_comes_before_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted([answer(200, PAGE)]) as one, scripted([answer(200, PAGE)]) as other:
        monkeypatch.setenv("AGENT_TEAM_URL", one.url)
        assert run("list").exit_code == 0
        assert run("list", "--url", f"{other.url}/behind/a/proxy/").exit_code == 0
        assert run("dead-letters", "list").exit_code == 0
        assert [request.line for request in one.requests] == [
            "GET /v1/workflows?limit=20 HTTP/1.1",
            "GET /v1/dead-letters?limit=50 HTTP/1.1",
        ]
        assert [request.line for request in other.requests] == ["GET /behind/a/proxy/v1/workflows?limit=20 HTTP/1.1"]


def test_a_key_that_cannot_be_one_is_not_sent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_TEAM_API_KEY", "two words")
    refused(run("list"), "AGENT_TEAM_API_KEY holds characters that no key has")


def test_a_proxy_of_the_environment_is_not_asked_about_this_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with scripted([answer(200, PAGE)]) as server:
        assert run("list", "--url", server.url).exit_code == 0


# --- what passes ---


def test_a_busy_gateway_is_asked_again_after_the_time_that_it_says(run: Run) -> None:
    busy = answer(429, b'{"detail":"100 requests a minute"}', retry_after="7")
    later = answer(503, b"", retry_after="Thu, 01 Jan 2026 00:00:30 GMT")
    with scripted([busy, later, answer(200, PAGE)]) as server:
        result = run("list", "--url", server.url)
        assert (result.exit_code, result.stdout) == (0, "")
        assert "(HTTP 429): 100 requests a minute; trying again in 7 s" in result.stderr
        assert QuickClock.slept == [7.0, 23.0]


def test_a_gateway_that_stays_busy_is_asked_five_times(run: Run) -> None:
    with scripted([answer(429, b"{}", retry_after="1")]) as server:
        refused(run("list", "--url", server.url), "cannot do this now (HTTP 429)")
        assert len(server.requests) == 5
        assert QuickClock.slept == [1.0, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("after", ["61", "Fri, 02 Jan 2026 00:00:00 GMT"])
def test_a_gateway_that_asks_for_more_than_a_minute_is_not_waited_for(run: Run, after: str) -> None:
    with scripted([answer(503, b"{}", retry_after=after)]) as server:
        refused(run("list", "--url", server.url), "cannot do this now (HTTP 503)")
        assert len(server.requests) == 1


def test_a_lost_answer_starts_one_workflow(run: Run) -> None:
    with scripted([b"", b"", answer(202, ACCEPTED)]) as server:
        result = run("submit", "report", "-p", "brief=x", "--url", server.url)
        assert (result.exit_code, result.stdout) == (0, f"{WORKFLOW}\n"), result.output
        keys = {request.headers["idempotency-key"] for request in server.requests}
        assert len(server.requests) == 3
        assert len(keys) == 1
        assert len({request.body for request in server.requests}) == 1
        run("submit", "report", "-p", "brief=x", "--url", server.url)
        assert server.requests[3].headers["idempotency-key"] not in keys


def test_when_all_answers_are_lost_the_key_is_told(run: Run) -> None:
    with scripted([b""]) as server:
        result = run("submit", "report", "-p", "brief=x", "--key", "order-4711", "--url", server.url)
        refused(result, "whether the workflow has started is not known", "--key order-4711")


def test_a_redrive_whose_answer_is_lost_is_not_done_twice(run: Run) -> None:
    with scripted([b""]) as server:
        refused(run("dead-letters", "redrive", "1", "--yes", "--url", server.url), "gives no answer")
        assert len(server.requests) == 1


def test_an_answer_that_is_no_workflow_s_id_is_not_printed(run: Run) -> None:
    with scripted([answer(202, b'{"id":"\\u001b[2Jwf","status":"QUEUED"}')]) as server:
        refused(run("submit", "report", "-p", "brief=x", "--url", server.url), "no workflow's id")


def test_everything_that_is_asked_for_is_in_the_request(run: Run) -> None:
    words = ("--priority", 7, "--max-cost-usd", 0.5, "--max-tokens", 1000, "--key", "k", "--json")
    with scripted([answer(202, ACCEPTED)]) as server:
        result = run("submit", "report", "-p", "brief=x", *words, "--url", server.url)
        assert json.loads(server.requests[0].body) == {
            "workflow": "report",
            "input": {"brief": "x"},
            "budget": {"max_cost_usd": 0.5, "max_tokens": 1000},
            "priority": 7,
        }
        assert server.requests[0].headers["idempotency-key"] == "k"
        assert json.loads(result.stdout) == {**json.loads(ACCEPTED), "idempotency_key": "k"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("report.yaml",), "takes the name of a workflow"),
        (("report",), "needs 'brief'"),
        (("report", "-i", "nothing.md"), "there is no file 'nothing.md'"),
        (("reprot", "-i", "nothing.md"), "did you mean 'report'?"),
        (("other", "-p", "x"), "is not NAME=VALUE"),
        (("report", "-p", "brief=x", "--key", "a b"), "--key must be"),
        (("report", "-p", "brief=x", "--key", ""), "--key must be"),
        (("report", "-p", "brief=x", "--max-cost-usd", "inf"), "--max-cost-usd must be a number of dollars"),
    ],
)
def test_what_cannot_be_submitted_is_told_without_asking(run: Run, words: tuple[str, ...], part: str) -> None:
    refused(run("submit", *words, "--url", "http://127.0.0.1:1"), part)


@pytest.mark.parametrize("words", [("list", "--workflow", "\udcff"), ("cancel", WORKFLOW, "--reason", "\udcff")])
def test_arguments_that_are_no_text_are_told_in_one_line(run: Run, words: tuple[str, ...]) -> None:
    with scripted([answer(200, json.dumps(DONE).encode())]) as server:
        refused(run(*words, "--url", server.url), "is not UTF-8 text")


def test_a_workflow_that_only_the_platform_knows_is_left_to_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text('{"topic": "ferries", "pages": 3}')
    with scripted([answer(202, ACCEPTED)]) as server:
        assert run("submit", "other", "-i", "given.json", "-p", "tone=dry", "--url", server.url).exit_code == 0
        assert json.loads(server.requests[0].body)["input"] == {"topic": "ferries", "pages": 3, "tone": "dry"}


# --- following ---


def entry(seq: int, kind: str, step: str | None = None, **more: Any) -> bytes:
    at = f"2026-01-01T00:00:0{seq % 10}Z"
    data = {"seq": seq, "at": at, "type": kind, "step": step, "attempt": 1, "data": None, **more}
    return f"event: {kind}\nid: {seq}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


END = b"event: end\ndata: {}\n\n"
FIRST, SECOND, THIRD = entry(1, "workflow.requested"), entry(2, "step.dispatched", "plan"), entry(3, "step.completed", "plan")


def test_a_broken_stream_goes_on_without_gap_or_copy(run: Run) -> None:
    answers = [
        stream(FIRST, SECOND[:20]),
        answer(502, HTML, "text/html"),
        stream(FIRST, SECOND, b": still here\n\n"),
        b"",
        stream(SECOND, THIRD, END),
        answer(200, json.dumps(DONE).encode()),
    ]
    with scripted(answers) as server:
        result = run("watch", WORKFLOW, "--json", "--url", server.url)
        assert result.exit_code == 0, result.output
        told = [json.loads(line) for line in result.stdout.splitlines()]
        assert [(one["event"], one["id"]) for one in told] == [
            ("workflow.requested", 1),
            ("step.dispatched", 2),
            ("step.completed", 3),
            ("end", None),
        ]
        assert [request.headers.get("last-event-id") for request in server.requests] == ["0", "1", "1", "2", "2", None]
        assert result.stderr.count("trying again for 5 minutes") == 2
        assert result.stderr.count("is there again") == 2


def test_lines_and_the_result_are_what_a_pipe_gets(run: Run) -> None:
    with scripted([stream(FIRST, SECOND, THIRD, END), answer(200, json.dumps(DONE).encode())]) as server:
        result = run("watch", WORKFLOW, "--url", server.url)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "    1.00 s  plan: started",
        "    2.00 s  plan: done in 1.00 s",
        "SUCCESS in 2.0 s · 1 step · 15 tokens · $0.0000",
        "",
        "the result",
    ]


def test_a_gateway_that_stays_away_is_given_up_after_five_minutes(run: Run) -> None:
    with scripted([stream(FIRST), b""]) as server:
        result = run("watch", WORKFLOW, "--url", server.url)
        assert result.exit_code == 2
        last = result.stderr.splitlines()[-1]
        assert "has not come back within 5 minutes" in last
        assert last.endswith(f"agent-team watch {WORKFLOW} --url {server.url}")
        assert 270 < sum(QuickClock.slept) <= 300
        assert max(QuickClock.slept) == 15
        assert len(server.requests) < 40


def test_a_gateway_that_sends_the_same_again_and_again_is_given_up_too(run: Run) -> None:
    with scripted([stream(FIRST)]) as server:
        result = run("watch", WORKFLOW, "--json", "--url", server.url)
        assert result.exit_code == 2
        assert len(result.stdout.splitlines()) == 1
        assert "has not come back" in result.stderr


def test_a_gateway_that_was_never_there_is_not_waited_for(run: Run) -> None:
    refused(run("watch", WORKFLOW, "--url", "http://127.0.0.1:1"), "cannot be reached")
    assert QuickClock.slept == []


@pytest.mark.parametrize(
    "given",
    [
        stream(b"event: x\nid: 1\ndata: nothing\n\n"),
        stream(b"event: x\nid: one\ndata: {}\n\n"),
        stream(b"event: x\nid: 1\ndata: {}\n\n"),
        stream(b"event: \xff\ndata: {}\n\n"),
        stream(b"event: progress\ndata: {}\n\n"),
        answer(200, HTML, "text/html"),
        answer(200, b"{}"),
    ],
)
def test_a_stream_that_is_none_is_told_in_one_line(run: Run, given: bytes) -> None:
    with scripted([given]) as server:
        result = run("watch", WORKFLOW, "--url", server.url)
        if b"progress" in given:  # a pipe gets nothing of it, so nothing is wrong until the stream ends
            assert result.exit_code == 2
        else:
            refused(result, "gateway")


def test_a_line_separator_inside_of_text_is_no_end_of_a_line(run: Run) -> None:
    said = entry(3, "step.failed", "plan", data={"type": "Odd", "message": "one\u2028two\u0085three"})
    with scripted([stream(FIRST, SECOND, said, END), answer(200, json.dumps(DONE).encode())]) as server:
        result = run("watch", WORKFLOW, "--json", "--url", server.url)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.split("\n")[2])["data"]["data"]["message"] == "one\u2028two\u0085three"


def test_a_workflow_that_did_not_succeed_exits_with_1(run: Run) -> None:
    failed = {**DONE, "status": "FAILED", "error": {"type": "BudgetExceeded", "message": "too \x1b[31mmuch"}}
    with scripted([stream(FIRST, END), answer(200, json.dumps(failed).encode())]) as server:
        result = run("watch", WORKFLOW, "--url", server.url)
    assert result.exit_code == 1
    assert "BudgetExceeded: too [31mmuch" in result.stderr
    assert "\x1b" not in result.output


def test_what_was_cancelled_and_what_had_ended_are_told_apart(run: Run) -> None:
    running = json.dumps({**DONE, "finished_at": None, "status": "RUNNING"}).encode()
    at_work = {"step": "draft", "agent": "writer", "attempt": 2, "since": "2026-01-01T00:00:01Z"}
    counts = {"running": 1, "running_steps": [at_work], "stopped": 7, "stopped_steps": [f"s{n}" for n in range(7)], "finished": 3}
    receipt = {**counts, "usage": USAGE, "usage_may_grow": True}
    cancelled = json.dumps({"id": WORKFLOW, "status": "CANCELLED", "receipt": receipt}).encode()
    with scripted(
        [answer(200, running), answer(202, cancelled), answer(200, json.dumps(DONE).encode()), answer(202, ACCEPTED)]
    ) as server:
        result = run("cancel", WORKFLOW, "--reason", "asked for twice", "--url", server.url)
        assert (result.exit_code, result.stdout.splitlines()) == (0, [
            f"{WORKFLOW} is cancelled",
            "was at work: 1 step: draft (writer, attempt 2)",
            "stopped before: 7 steps: s0, s1, s2, s3, s4 and 2 more",
            "had ended: 3 steps",
            "used: 15 tokens, $0.0000 so far; calls that were under way may still add to it",
        ])  # fmt: skip
        sent = json.loads(server.requests[1].body)
        assert (sent["reason"], set(sent)) == ("asked for twice", {"reason", "by"})
        again = run("cancel", WORKFLOW, "--json", "--url", server.url)
        assert json.loads(again.stdout)["had_ended"] is True


def test_a_pause_and_a_resumption_say_what_comes_of_them(run: Run) -> None:
    def pause(status: str, paused_at: str | None) -> bytes:
        about = {"id": WORKFLOW, "status": status, "paused_at": paused_at, "paused_by": None}
        return answer(202, json.dumps(about).encode())

    at = "2026-01-01T00:00:00Z"
    with scripted([pause("RUNNING", at), pause("WAITING", at), pause("QUEUED", None), pause("QUEUED", None)]) as server:
        told = [run(verb, WORKFLOW, "--reason", "why", "--url", server.url) for verb in ("pause", "pause", "resume")]
        as_json = run("resume", WORKFLOW, "--json", "--url", server.url)
        asked = [(request.line.split()[1], json.loads(request.body)["reason"]) for request in server.requests]
    assert [one.stdout for one in told] == [
        f"{WORKFLOW} is paused; what is at work ends first; it goes on with: agent-team resume {WORKFLOW}\n",
        f"{WORKFLOW} is paused; it goes on with: agent-team resume {WORKFLOW}\n",
        f"{WORKFLOW} goes on: QUEUED\n",
    ]
    assert json.loads(as_json.stdout)["status"] == "QUEUED"
    path = f"/v1/workflows/{WORKFLOW}"
    assert asked == [(f"{path}/pause", "why"), (f"{path}/pause", "why"), (f"{path}/resume", "why"), (f"{path}/resume", "")]


def test_who_watches_sees_the_place_in_the_queue(run: Run) -> None:
    place = b'event: queue\ndata: {"position":3,"ahead":2,"exact":true}\n\n'
    guess = b'event: queue\ndata: {"position":1001,"ahead":1000,"exact":false}\n\n'
    with scripted([stream(guess, place, FIRST, END), answer(200, json.dumps(DONE).encode())]) as server:
        result = run("watch", WORKFLOW, "--url", server.url)
    assert "waiting for a free slot: about 1,001 in the queue\nwaiting for a free slot: 3 in the queue\n" in result.stdout


@pytest.mark.parametrize("verb", ["watch", "show", "cancel"])
@pytest.mark.parametrize("id", ["report", "../../health", "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9C", "x\ny", "\x1b[31m", ""])
def test_an_id_that_is_none_is_refused_without_asking(run: Run, verb: str, id: str) -> None:
    refused(run(verb, id, "--url", "http://127.0.0.1:1"), "no workflow's id")


# --- outputs that are kept apart ---


def test_what_is_kept_apart_is_fetched_from_the_gateway_and_from_nobody_else(run: Run) -> None:
    kept = {"$output": {"sha256": "1" * 64, "bytes": 70_000, "href": "http://elsewhere.example/output"}}
    step = {"id": "research/0", "output": kept, "waiting": None}
    shown = {**DONE, "output": kept, "steps": [step]}
    answers = [answer(200, json.dumps(shown).encode()), answer(200, b'{"text":"whole"}'), answer(200, b'"the step\'s"')]
    with scripted(answers) as server:
        result = run("show", WORKFLOW, "--json", "--url", server.url)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["output"], told["steps"][0]["output"]) == ({"text": "whole"}, "the step's")
    paths = [request.line.split()[1].removeprefix(f"/v1/workflows/{WORKFLOW}") for request in server.requests]
    assert paths == ["", "/output", "/steps/research/0/output"]
