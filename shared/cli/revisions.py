"""The revisions of every function under one tag, asked from inside the project in its own name.

Cloud Run answers a tag at `https://TAG---SERVICE-PROJECTNUMBER.REGION.run.app`
(https://cloud.google.com/run/docs/triggering/https-request#deterministic), and lets in whoever shows an identity token of an
account that may invoke the service. The metadata server makes such tokens.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import httpx

from shared.errors import ConfigurationError
from shared.runtime.spec import FunctionSpec, load_functions

_HOST: Final = "{service}-{number}.{region}.run.app"
_SECONDS: Final = 60.0
"""For one answer: the instance has to start first."""

Token = Callable[[str], Awaitable[str]]
"""An identity token for an audience."""


async def token_of_this_job(audience: str) -> str:
    """From the metadata server, in the name of the account that this runs as. Raises ConfigurationError where there is none."""
    return await asyncio.to_thread(_fetch_token, audience)


@dataclass(frozen=True, slots=True)
class Revisions:
    """One revision for each function of the project."""

    tag: str
    project_number: str
    region: str

    async def ask(self, http: httpx.AsyncClient, token: Token = token_of_this_job) -> AsyncIterator[tuple[str, str | None]]:
        """Each function's name, and what is wrong with its new revision: None when it answered as itself."""
        asked = {name: asyncio.create_task(self._ask(http, spec, token)) for name, spec in load_functions().items()}
        for name, answer in asked.items():
            yield name, await answer

    async def _ask(self, http: httpx.AsyncClient, spec: FunctionSpec, token: Token) -> str | None:
        host = _HOST.format(service=spec.name.replace("_", "-"), number=self.project_number, region=self.region)
        path = "/health" if any(trigger.http for trigger in spec.triggers) else "/"
        headers = {"Authorization": f"Bearer {await token(f'https://{host}')}"}
        try:
            answer = await http.get(f"https://{self.tag}---{host}{path}", headers=headers, timeout=_SECONDS)
        except httpx.HTTPError as error:
            return f"no answer ({type(error).__name__})"
        if not spec.subscriptions() and answer.status_code in (200, 405):
            return None  # what is called by time alone takes no GET, and says so: it is there
        if answer.status_code != 200:
            return f"answers with {answer.status_code}; its log says why"
        return None if _name(answer) == spec.name else "does not answer as itself; is FUNCTION_TARGET right?"


def _name(answer: httpx.Response) -> str | None:
    try:
        return str(answer.json()["function"])
    except (ValueError, KeyError, TypeError):
        return None


def _fetch_token(audience: str) -> str:
    from google.auth import exceptions
    from google.auth.transport.requests import Request
    from google.oauth2 import id_token

    try:
        return str(id_token.fetch_id_token(Request(), audience))  # type: ignore[no-untyped-call]
    except exceptions.GoogleAuthError as error:
        raise ConfigurationError("there is no account here that could ask; run it as a job inside the project") from error
