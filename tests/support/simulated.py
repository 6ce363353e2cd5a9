"""Google's own client, pointed at a simulated Gemini."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import httpx2
from google.genai import Client, types

PRO = "gemini-2.5-pro"
NEWER = "gemini-3.1-pro-preview"
BRIEF = "The ferry was late on Monday. The crew had 3 people instead of 5. Who decides when it sails?"


@asynccontextmanager
async def google(url: str, *, key: str = "AIza-some-key") -> AsyncIterator[Any]:
    """The asynchronous models of Google's client, over the backend that the platform uses."""
    # Nothing here speaks TLS, and reading the certificate store is what would take the time.
    with patch.object(ssl, "create_default_context", lambda *_, **__: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
        http = httpx2.AsyncClient(trust_env=False)
        client = Client(
            api_key=key, vertexai=False, http_options=types.HttpOptions(base_url=url, httpx_async_client=http, timeout=10_000)
        )
    async with http:
        yield client.aio.models


def settings(**given: Any) -> types.GenerateContentConfig:
    """A configuration whose calls the client does not carry out itself."""
    return types.GenerateContentConfig(
        **{"automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True), **given}
    )
