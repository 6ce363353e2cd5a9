"""Gemini, by Google's own client (google-genai 3.4).

What this module adds, because the client does not do it: a deadline for the whole call (its own timeout is per read, and absent by
default), one HTTP backend whatever else is installed (with aiohttp it sends a request twice when a connection drops), the server's
retry delay, and a word on whether a call that failed may have been carried out. One call here is one HTTP request: nothing is
retried, no function is called and no answer that was cut off is gone on with. That is the business of those who keep count.

What is sent and how answers are read is in gemini_wire.py, what errors mean in gemini_errors.py.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, cast

from shared.ai.base import Price, Reply, Request
from shared.ai.gemini_errors import timed_out, translated
from shared.ai.gemini_wire import Answer, config, contents, to_count
from shared.clock import Clock, SystemClock
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client, types

BASE_URL = "https://generativelanguage.googleapis.com/"
_opened: "ContextVar[list[httpx2.Response] | None]" = ContextVar("_opened", default=None)
"""Where a streamed call wants its response put: the client does not show it."""


class GeminiModel:
    """One Gemini model. Nothing is imported or opened before the first call; it then belongs to the loop of that call."""

    def __init__(
        self,
        api_key: str,
        model: str,
        *,
        clock: Clock | None = None,
        base_url: str | None = None,
        price: Price | None = None,
    ) -> None:
        """Raises ConfigurationError when the key cannot be one: then no request could even be written."""
        self._api_key = api_key.strip()
        if not self._api_key or not self._api_key.isascii() or not self._api_key.isprintable():
            raise ConfigurationError(
                "GEMINI_API_KEY is empty or holds characters that no key has; copy it again from where it was made"
            )
        self._model = model
        self._clock = SystemClock() if clock is None else clock
        self._base_url = BASE_URL if base_url is None else base_url
        self._price = Price() if price is None else price
        self._http: httpx2.AsyncClient | None = None
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"GeminiModel({self._model!r})"

    async def generate(self, request: Request) -> Reply:
        """Ask once. The output is text, also where a schema was asked for; `problem` says why an answer is of no use.

        Raises RateLimited, ModelRefused, ModelUnknown and ModelUnavailable when the call was certainly not carried out,
        OutcomeUnknown when it may have been, ConfigurationError for a base URL that is none, and whatever `on_text` raises.
        """
        models = self.open().aio.models
        said, settings = contents(self._model, request), config(request, self._http_options(request))
        answer = Answer(self._model, request, self._price)
        async with self._deadline(request):
            if request.on_text is None:
                with self._errors(request):
                    answer.add(await models.generate_content(model=self._model, contents=said, config=settings))
            else:
                with self._errors(request):
                    stream = await models.generate_content_stream(model=self._model, contents=said, config=settings)
                await self._follow(stream, request, answer)
        return answer.reply()

    async def count(self, request: Request) -> int:
        """The tokens of input that `generate` would send. Costs nothing but a request. Raises what `generate` raises."""
        models = self.open().aio.models
        from google.genai import types

        options = self._http_options(request)
        # The client's own parameters reach the contents only; schema and tools are input too.
        options.extra_body = to_count(self._model, request)
        async with self._deadline(request):
            with self._errors(request):
                counted = await models.count_tokens(
                    model=self._model, contents=request.prompt, config=types.CountTokensConfig(http_options=options)
                )
                return int(cast(int, counted.total_tokens))

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    async def _follow(self, stream: "AsyncIterator[types.GenerateContentResponse]", request: Request, answer: Answer) -> None:
        import httpx2

        assert request.on_text is not None
        begun = False
        opened: list[httpx2.Response] = []
        remembered = _opened.set(opened)
        try:
            while True:
                with self._errors(request, begun=begun):
                    chunk = await anext(stream, None)
                    if chunk is None:
                        return
                    begun = True
                    grown = answer.add(chunk)
                # Out here, so that an error of the listener is not taken for one of the stream.
                if grown:
                    request.on_text(answer.text)
        finally:
            # Closing `stream` would not do: the client's generators refer to each other, and hold the connection until they are
            # collected.
            _opened.reset(remembered)
            for response in opened:
                # What it says on leaving may not hide why it is left.
                with contextlib.suppress(httpx2.HTTPError):
                    await response.aclose()

    @contextlib.contextmanager
    def _errors(self, request: Request, *, begun: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            raise translated(self._model, exc, self._clock, request.timeout_seconds, begun=begun) from exc

    @contextlib.asynccontextmanager
    async def _deadline(self, request: Request) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(request.timeout_seconds) as limit:
                yield
        except TimeoutError as exc:
            if not limit.expired():
                raise  # the listener's
            raise timed_out(self._model, request.timeout_seconds) from exc

    def _http_options(self, request: Request) -> "types.HttpOptions":
        from google.genai import types

        return types.HttpOptions(timeout=max(1, math.ceil(request.timeout_seconds * 1000)))

    def open(self) -> "Client":
        """Load and set up what a first call needs. Raises ConfigurationError when that cannot be had."""
        if self._client is None:
            # Imported here: 0.8 s that only a function which does ask a model shall pay.
            import httpx2
            from google.genai import Client, types

            try:
                # A client of our own keeps google-genai from choosing aiohttp, and its environment variables from choosing another.
                http = httpx2.AsyncClient(event_hooks={"response": [_remember]})
                options = types.HttpOptions(base_url=self._base_url, httpx_async_client=http)
                self._client = Client(api_key=self._api_key, vertexai=False, http_options=options)
            except (ImportError, OSError, ValueError, httpx2.InvalidURL) as exc:
                raise ConfigurationError(
                    f"{self._model}: no HTTP client can be set up for it ({type(exc).__name__});"
                    " check HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
                ) from exc
            self._http = http
        return self._client


async def _remember(response: "httpx2.Response") -> None:
    opened = _opened.get()
    if opened is not None:
        opened.append(response)
