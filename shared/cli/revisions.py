"""The revisions of every function under one tag, asked from inside the project in its own name.

Cloud Run answers a tag at `https://TAG---SERVICE-PROJECTNUMBER.REGION.run.app`
(https://cloud.google.com/run/docs/triggering/https-request#deterministic), and lets in whoever shows an identity token of an
account that may invoke the service. The metadata server makes such tokens.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import httpx

from shared.errors import ConfigurationError
from shared.runtime.spec import FunctionSpec, load_functions

ADDRESS: Final = "https://{tag}---{service}-{number}.{region}.run.app"
_SECONDS: Final = 60.0
"""For one answer: the instance has to start first."""


@dataclass(frozen=True, slots=True)
class Revisions:
    """One revision for each function of the project."""

    tag: str
    project_number: str
    region: str
    address: str = ADDRESS

    async def ask(self) -> AsyncIterator[tuple[str, str | None]]:
        """Each function's name, and what is wrong with its new revision: None when it answered as itself."""
        async with httpx.AsyncClient(timeout=_SECONDS) as http:
            asked = {name: asyncio.create_task(self._ask(http, spec)) for name, spec in load_functions().items()}
            for name, answer in asked.items():
                yield name, await answer

    async def _ask(self, http: httpx.AsyncClient, spec: FunctionSpec) -> str | None:
        service = spec.name.replace("_", "-")
        url = self.address.format(tag=self.tag, service=service, number=self.project_number, region=self.region)
        over_http = any(trigger.http or trigger.schedule for trigger in spec.triggers)
        path = "/health" if any(trigger.http for trigger in spec.triggers) else "/"
        try:
            token = await asyncio.to_thread(
                _identity_token,
                self.address.format(tag="", service=service, number=self.project_number, region=self.region).replace("---", ""),
            )
            answer = await http.get(f"{url}{path}", headers={"Authorization": f"Bearer {token}"})
        except httpx.HTTPError as error:
            return f"no answer ({type(error).__name__})"
        if over_http:
            # What is called by time alone takes no GET, and says so: it is there.
            return None if answer.status_code in (200, 405) else f"answers with {answer.status_code}"
        if answer.status_code != 200:
            return f"answers with {answer.status_code}"
        found = answer.json().get("function") if answer.headers.get("content-type", "").startswith("application/json") else None
        return None if found == spec.name else "does not answer as itself; is FUNCTION_TARGET right?"


def _identity_token(audience: str) -> str:
    from google.auth import exceptions
    from google.auth.transport.requests import Request
    from google.oauth2 import id_token

    try:
        return str(id_token.fetch_id_token(Request(), audience))  # type: ignore[no-untyped-call]
    except exceptions.GoogleAuthError as error:
        raise ConfigurationError("there is no account here that could ask; run it as a job inside the project") from error
