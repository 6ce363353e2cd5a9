"""The pages of an approval: what is asked, what was decided, why nothing can be. Plain HTML that loads nothing and runs nothing.

Whatever comes from outside is text: a prompt may hold what a model wrote, a comment what a stranger did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from starlette.responses import Response

from functions.gateway.pages import page

_SHELL: Final = Template(Path(__file__).with_name("approval.html").read_text(encoding="utf-8"))
_FORM: Final = Template("""\
<p class="about">Workflow <b>$workflow</b> waits for an answer to step <b>$step</b>, since $since.</p>
<pre class="prompt">$prompt</pre>
$problem<form method="post">
  <button type="submit" disabled hidden></button>
  <label for="comment">Comment <span>(optional, kept in the history)</span></label>
  <textarea id="comment" name="comment" rows="3" maxlength="2000">$comment</textarea>
  <label for="name">Your name <span>(optional, nobody checks it)</span></label>
  <input id="name" name="name" maxlength="100" autocomplete="name" value="$name">
  <div class="buttons">
    <button class="approve" name="decision" value="approve">Approve</button>
    <button class="reject" name="decision" value="reject">Reject</button>
  </div>
  <details$open>
    <summary>Approve with a change</summary>
    <label for="value">What shall count instead <span>(JSON, or else text)</span></label>
    <textarea id="value" name="value" rows="6" spellcheck="false">$value</textarea>
    <button name="decision" value="amend">Change</button>
  </details>
</form>
<p class="fine">The first answer counts. The link is good until $until. $id</p>
""")
_WORDS: Final = {"approve": "Approved", "reject": "Rejected", "amend": "Approved with a change"}


@dataclass(frozen=True, slots=True)
class Asked:
    """An approval that is waited for."""

    workflow: str
    id: str
    step: str
    prompt: str
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided."""

    decision: str
    by: str
    at: datetime
    comment: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a link leads nowhere."""

    status: int
    title: str
    reason: str


def form_page(asked: Asked, *, problem: str | None = None, given: Mapping[str, str] | None = None) -> Response:
    """What is asked, with a form; 422 with what was wrong about the answer before and what was `given` then."""
    given = {} if given is None else given
    values = {name: escape(given.get(name, "")) for name in ("comment", "name", "value")}
    body = _FORM.substitute(
        values,
        workflow=escape(asked.workflow),
        id=asked.id,
        step=escape(asked.step),
        prompt=escape(asked.prompt),
        since=_moment(asked.since),
        until=_moment(asked.until),
        problem="" if problem is None else f'<p class="problem" role="alert">Nothing was decided: {escape(problem)}.</p>\n',
        open=" open" if given.get("value") else "",
    )
    return _page("Your approval is asked for", body, status=200 if problem is None else 422)


def verdict_page(verdict: Verdict, *, status: int = 200) -> Response:
    """What was decided; with 410 that it was, before."""
    by = f" by <b>{escape(verdict.by)}</b>" if verdict.by else ""
    body = f"<p>{_WORDS[verdict.decision]}{by} at {_moment(verdict.at)}.</p>\n"
    if verdict.comment:
        body += f'<pre class="prompt">{escape(verdict.comment)}</pre>\n'
    if status == 200:
        return _page(_WORDS[verdict.decision], f"{body}<p>You can close this page.</p>\n", status=status)
    return _page("This was decided already", f"{body}<p>The first answer counts, and this link is used up.</p>\n", status=status)


def refusal_page(refusal: Refusal) -> Response:
    """Why there is nothing to decide here."""
    return _page(refusal.title, f"<p>{escape(refusal.reason)}</p>\n", status=refusal.status)


def _page(title: str, body: str, *, status: int) -> Response:
    # Only the form's own page takes what it sends.
    return page(_SHELL.substitute(title=escape(title), body=body), {"form-action": "'self'"}, status=status)


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
