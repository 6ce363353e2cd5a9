"""What the simulated model comes to: calls or text, cut off where the output tokens end."""

from dataclasses import replace

from shared.local.simulator import answers, calls
from shared.local.simulator.asked import Asked, parts
from shared.local.simulator.faults import Kind
from shared.local.simulator.replies import Answer, cut, output_tokens
from shared.local.simulator.settings import SimulatorSettings


def think(settings: SimulatorSettings, model: str, asked: Asked, script: calls.Script | None, *, id: str) -> Answer:
    """The answer when all goes well."""
    material = answers.read(asked.prompt)
    turn = sum(bool(parts(content, "functionCall")) for content in asked.contents)
    written = calls.as_parts(calls.wanted(asked, material, script), model=model, turn=turn)
    text = "" if written else answers.write(asked, material)
    thinking = int(min(settings.thinking_tokens, asked.max_output_tokens))
    answer = Answer(
        model=model,
        id=id,
        text=text,
        calls=written,
        input_tokens=asked.input_tokens,
        cached_tokens=int(asked.input_tokens * settings.cached_share),
        output_tokens=output_tokens(text, written),
        thinking_tokens=thinking,
    )
    left = asked.max_output_tokens - thinking
    return answer if answer.output_tokens <= left else _cut_off(answer, int(left))


def spoilt(answer: Answer, kind: Kind | None) -> Answer:
    """The answer as a fault leaves it. What was written before it went wrong is paid for."""
    if kind is Kind.MAX_TOKENS:
        return _cut_off(answer, answer.output_tokens // 2)
    if kind is Kind.BLOCKED_ANSWER:
        return replace(answer, finish="SAFETY")
    if kind is Kind.BLOCKED_PROMPT:
        return replace(_said(answer, ""), blocked_prompt=True, thinking_tokens=0)
    if kind is Kind.NO_CANDIDATES:
        return replace(_said(answer, ""), no_candidates=True, thinking_tokens=0)
    return _said(answer, answers.BAD_OUTPUT) if kind is Kind.BAD_OUTPUT else answer


def _cut_off(answer: Answer, tokens: int) -> Answer:
    # Half a call is none: as of text, what there was of it is paid for.
    return replace(answer, text=cut(answer.text, tokens), calls=(), output_tokens=tokens, finish="MAX_TOKENS")


def _said(answer: Answer, text: str) -> Answer:
    return replace(answer, text=text, calls=(), output_tokens=output_tokens(text, ()))
