"""Requests as Gemini takes them, and its responses as a reply: pure functions of what is sent and what comes.

- A schema and tools exclude each other: models of the generation 2.5 refuse a request with both.
  https://ai.google.dev/gemini-api/docs/structured-output
- Tokens: the thoughts are not among the candidates' tokens, cost as much and count towards the limit; what is cached is part of
  the prompt; the prompts of tools are input beside it (total = prompt + candidates + tool-use prompt + thoughts).
  https://ai.google.dev/gemini-api/docs/tokens, https://ai.google.dev/gemini-api/docs/thinking
- Thought signatures: a model since Gemini 3 answers 400 when the first call of a turn comes back without one, and only its own
  signatures mean something to a model. For calls that another one made Google documents a placeholder.
  https://ai.google.dev/gemini-api/docs/thought-signatures
"""

import re
from typing import TYPE_CHECKING, Any, Final

from shared.ai.base import Declaration, JsonSchema, Price, Reply, Request, ToolCall, Turn
from shared.ai.gemini_errors import code_word
from shared.errors import (
    AgentTeamError,
    ContentBlocked,
    ModelRefused,
    ModelUnavailable,
    OutcomeUnknown,
    OutputEmpty,
    OutputTruncated,
)
from shared.messages import Usage

if TYPE_CHECKING:
    from google.genai import types

_NOT_SENT: Final = ("minLength", "maxLength")
"""Keywords of our schemas that Gemini does not take; they are checked on what comes back."""
_BEFORE_SIGNATURES: Final = re.compile(r"(models/)?gemini-[12]\b")
"""Models that ask for no signature. Any other name may be that of a model which does, an alias such as gemini-flash-latest too."""
_PLACEHOLDER: Final = b"skip_thought_signature_validator"

_COMPLETE: Final = frozenset({"STOP", "FINISH_REASON_UNSPECIFIED"})
_CUT_OFF: Final = frozenset({"MAX_TOKENS", "CONTINUATION"})
_FAILED: Final = frozenset(
    {"OTHER", "MALFORMED_RESPONSE", "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"}
    | {"IMAGE_OTHER", "NO_IMAGE"}
)
_REFUSED: Final = frozenset({"MISSING_THOUGHT_SIGNATURE", "PUP_LIMITED_DISABLED"})
"""It is not about what was said: the request lacks something, or the account is closed."""


def config(request: Request, http_options: "types.HttpOptions") -> "types.GenerateContentConfig":
    """All that is sent beside the contents."""
    from google.genai import types

    schema = _schema(request)
    return types.GenerateContentConfig(
        temperature=request.temperature,
        max_output_tokens=request.max_tokens,
        response_mime_type=None if schema is None else "application/json",
        response_json_schema=schema,
        tools=[_tool(request.tools)] if request.tools else None,
        # Both would make further calls behind our back, outside limits, budget and deadline.
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        automatic_continuation=False,
        http_options=http_options,
    )


def contents(model: str, request: Request) -> "list[types.ContentUnion]":
    """The prompt, then for each turn what the model asked for and what it was told."""
    from google.genai import types

    said: list[types.ContentUnion] = [types.Content(role="user", parts=[types.Part(text=request.prompt)])]
    for turn in request.turns:
        said.append(types.Content(role="model", parts=_asked(model, turn)))
        results = [
            types.Part(function_response=types.FunctionResponse(id=call.id, name=call.name, response=dict(result)))
            for call, result in zip(turn.calls, turn.results, strict=True)
        ]
        said.append(types.Content(role="user", parts=results))
    return said


def to_count(model: str, request: Request) -> dict[str, Any]:
    """The body of countTokens for all that `generate` would send. `contents` beside a whole request must be empty."""
    from google.genai import types

    whole: dict[str, Any] = {
        "model": model if "/" in model else f"models/{model}",
        "contents": [
            content.model_dump(mode="json", by_alias=True, exclude_none=True)
            for content in contents(model, request)
            if isinstance(content, types.Content)
        ],
    }
    if request.tools:
        whole["tools"] = [_tool(request.tools).model_dump(mode="json", by_alias=True, exclude_none=True)]
    schema = _schema(request)
    if schema is not None:
        whole["generationConfig"] = {"responseMimeType": "application/json", "responseJsonSchema": schema}
    return {"contents": [], "generateContentRequest": whole}


class Answer:
    """What one response, or the chunks of a streamed one, add up to."""

    def __init__(self, model: str, request: Request, price: Price) -> None:
        self._model = model
        self._request = request
        self._price = price
        self.text = ""
        self._calls: list[ToolCall] = []
        self._usage = Usage(model_calls=1)
        self._blocked = ""
        self._finish = ""
        self._candidate = False

    def add(self, response: "types.GenerateContentResponse") -> bool:
        """Take in the next chunk; whether there is more text now."""
        if response.usage_metadata is not None:
            self._usage = _usage(response.usage_metadata, self._price)
        feedback = response.prompt_feedback
        if feedback is not None and feedback.block_reason is not None:
            self._blocked = code_word(feedback.block_reason.value) or "OTHER"
        if not response.candidates:
            return False
        candidate = response.candidates[0]
        self._candidate = True
        if candidate.finish_reason is not None:
            self._finish = code_word(candidate.finish_reason.value) or "OTHER"
        parts = [] if candidate.content is None or candidate.content.parts is None else candidate.content.parts
        self._calls.extend(_call(part, part.function_call) for part in parts if part.function_call is not None)
        new = "".join(part.text for part in parts if part.text and not part.thought)
        self.text += new
        return new != ""

    def reply(self) -> Reply:
        """The reply once all has come. Raises OutcomeUnknown when a stream ended without saying that it was the end."""
        if self._request.on_text is not None and self._finish in ("", "FINISH_REASON_UNSPECIFIED") and not self._blocked:
            raise OutcomeUnknown(f"{self._model}: the stream ended before the answer was complete")
        return Reply(output=self.text, model=self._model, usage=self._usage, calls=tuple(self._calls), problem=self._problem())

    def _problem(self) -> AgentTeamError | None:
        model, finish = self._model, self._finish or "STOP"
        if self._blocked:
            return ContentBlocked(f"{model} will not answer: the prompt was blocked ({self._blocked}); change the input")
        if not self._candidate:
            return OutputEmpty(f"{model} gave no answer: its response holds no candidate")
        if finish in _CUT_OFF:
            return OutputTruncated(
                f"{model} was cut off at {self._request.max_tokens} output tokens (thinking included); raise AI_MAX_TOKENS"
            )
        if finish in _FAILED:
            return ModelUnavailable(f"{model} broke off its answer ({finish})")
        if finish in _REFUSED:
            return ModelRefused(f"{model} will not answer: it does not take the request, or the account ({finish})")
        if finish not in _COMPLETE:
            return ContentBlocked(f"{model} will not answer: the answer was withheld ({finish}); change the input")
        if not self.text and not self._calls:
            return OutputEmpty(f"{model} gave no answer: its response holds no text")
        return None


def _call(part: "types.Part", call: "types.FunctionCall") -> ToolCall:
    return ToolCall(call.name or "", {} if call.args is None else call.args, id=call.id, signature=part.thought_signature)


def _usage(counted: "types.GenerateContentResponseUsageMetadata", price: Price) -> Usage:
    input_tokens = (counted.prompt_token_count or 0) + (counted.tool_use_prompt_token_count or 0)
    output_tokens = (counted.candidates_token_count or 0) + (counted.thoughts_token_count or 0)
    cost = price.microdollars(
        input_tokens=input_tokens, output_tokens=output_tokens, cached_tokens=counted.cached_content_token_count or 0
    )
    return Usage(model_calls=1, input_tokens=input_tokens, output_tokens=output_tokens, cost_microdollars=cost)


def _asked(model: str, turn: Turn) -> "list[types.Part]":
    from google.genai import types

    own = turn.model == model
    signatures = [call.signature if own else None for call in turn.calls]
    # Of calls made at the same time only the first is signed, and only there one is missed.
    if signatures and signatures[0] is None and not _BEFORE_SIGNATURES.match(model):
        signatures[0] = _PLACEHOLDER
    return [
        types.Part(
            function_call=types.FunctionCall(id=call.id, name=call.name, args=dict(call.arguments)), thought_signature=signature
        )
        for call, signature in zip(turn.calls, signatures, strict=True)
    ]


def _tool(declarations: tuple[Declaration, ...]) -> "types.Tool":
    from google.genai import types

    return types.Tool(
        function_declarations=[
            types.FunctionDeclaration(name=one.name, description=one.description, parameters_json_schema=_sent(one.parameters))
            for one in declarations
        ]
    )


def _schema(request: Request) -> dict[str, Any] | None:
    return None if request.schema is None or request.tools else _sent(request.schema)


def _sent(schema: JsonSchema) -> dict[str, Any]:
    """`schema` as Gemini takes it."""
    sent: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "properties":
            sent[keyword] = {name: _sent(child) for name, child in value.items()}
        elif keyword == "items":
            sent[keyword] = _sent(value)
        elif keyword not in _NOT_SENT:
            sent[keyword] = value
    return sent
