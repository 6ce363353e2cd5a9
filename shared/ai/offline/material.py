"""What a request is about: the text to work on, what to look for in it, and what is known of it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from shared.ai.offline import change, incident
from shared.ai.offline.debate import Argument, Verdict, argue, judge
from shared.ai.offline.document import LIMIT_CHARACTERS, Document, Unit, read
from shared.ai.offline.language import capitalised, shortened, terms, words
from shared.ai.offline.planning import plan
from shared.ai.offline.report import NOTICE, without_notice

MOST_FINDINGS = 8
_MOST_TEXTS = 10_000
PLAIN_QUESTIONS = ("What is the material about?", "What follows from it?", "What does it leave open?")
ASKING = frozenset(terms(" ".join(("What does the material say about it?", *PLAIN_QUESTIONS))))
"""Words of a question that name nothing to look for."""
_FOCUS = ("question", "focus", "topic", "query")
_DEBATE = "arguments"
_ABOUT_DEBATE = ("side", "sides", "rubric")
_QUOTED = re.compile(r"[“\"«„]([^“”\"«»„]+)[”\"»“]")
_UNTRUSTED = re.compile(r"<untrusted>\s*(.*?)\s*</untrusted>", re.DOTALL)


class Material:
    """A request's values, read for what the extractive model needs.

    The text is every string in the values that holds more than a word, except what says what to look for (`question`, `focus`, …)
    and what belongs to a debate about it: what was argued (`arguments`), by whom, and judged by what. Without values it is what the
    prompt marks as untrusted, else the whole prompt. `notice` is what ends the texts that are put together from it.
    """

    def __init__(self, values: Mapping[str, Any], prompt: str, *, notice: str = NOTICE) -> None:
        self.notice = notice
        self.values: Mapping[str, Any] = values if values else {"prompt": "\n\n".join(_UNTRUSTED.findall(prompt)) or prompt}

    @cached_property
    def document(self) -> Document:
        """The text, taken apart."""
        apart = (*_FOCUS, _DEBATE, *(_ABOUT_DEBATE if _DEBATE in self.values else ()))
        values = {name: value for name, value in self.values.items() if name not in apart}
        # Single words are switches and names; they are the text only where there is nothing else.
        texts = list(islice(_texts(values, low=2), _MOST_TEXTS)) or list(islice(_texts(values, low=1), _MOST_TEXTS))
        return read(without_notice("\n\n".join(texts), self.notice)[:LIMIT_CHARACTERS])

    @cached_property
    def focus(self) -> str:
        """What to look for: the words that the question quotes, if any, else the question; empty when it names nothing."""
        asked = next((self.values[name] for name in _FOCUS if isinstance(self.values.get(name), str)), "")
        quoted = " ".join(_QUOTED.findall(asked))
        if quoted:
            return quoted
        return asked if any(term not in ASKING for term in terms(asked)) else ""

    @cached_property
    def relevant(self) -> list[tuple[Unit, float]]:
        """What the text says about the focus; without a focus, what weighs most."""
        if self.focus:
            return self.document.relevant(self.focus, limit=MOST_FINDINGS)
        return [(unit, unit.weight) for unit in self.document.summary(MOST_FINDINGS)]

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What is known by name of an incident's notes, a postmortem's record, a patch and a change; of other texts, nothing."""
        if isinstance(self.values.get("notes"), str):
            return incident.told(self.values)
        if isinstance(self.values.get("record"), Mapping):
            return incident.written(self.values, self.notice)
        if isinstance(self.values.get("patch"), str):
            return change.remarks(self.values)
        return change.judged(self.values, self.notice) if isinstance(self.values.get("changed"), list) else {}

    @cached_property
    def title(self) -> str:
        """A headline: the text's own, else its main topics, else its first words."""
        if self.document.title:
            return self.document.title
        topics = self.document.topics(2, 2)
        if topics:
            return capitalised(" and ".join(topics))
        return shortened(self.document.units[0].text, 80) if self.document.units else "Untitled"

    @cached_property
    def argument(self) -> Argument | None:
        """The case of the request's side, when the request is for one side of a debate."""
        side, number = self.values.get("side"), self.values.get("round")
        positions = {"for": "", "against": ""} | self._positions
        if not isinstance(side, str) or side not in positions:
            return None
        number = number if isinstance(number, int) and number > 0 else 1
        return argue(self.document, side, self._arguments, number=number, position=positions[side])

    @cached_property
    def verdict(self) -> Verdict | None:
        """The outcome of the debate, when the request holds one."""
        return judge(self._arguments) if self._arguments else None

    @cached_property
    def plan(self) -> dict[str, Any] | None:
        """The steps for the request's agents, when it asks for a plan."""
        return plan(self.values)

    @property
    def coverage(self) -> float:
        """How much of what is looked for the text holds, 0 to 1; without a focus, how even its statements weigh."""
        found = self.relevant
        return round(sum(relevance for _, relevance in found) / len(found), 2) if found else 0.0

    def echo(self, name: str) -> str | None:
        """The value that the request itself gives for `name`, at its top or one object deep."""
        for values in (self.values, *(value for value in self.values.values() if isinstance(value, Mapping))):
            value = values.get(name)
            if isinstance(value, str) and value.strip():
                return value
        return None

    @property
    def _positions(self) -> dict[str, str]:
        """The sides of the debate by name, and what each stands for."""
        sides = self.values.get("sides")
        named = (
            [one for one in sides if isinstance(one, Mapping) and isinstance(one.get("name"), str)]
            if isinstance(sides, list)
            else []
        )
        return {one["name"]: str(one.get("position") or "") for one in named}

    @property
    def _arguments(self) -> Sequence[Mapping[str, Any]]:
        said = self.values.get(_DEBATE)
        return [one for one in said if isinstance(one, Mapping)] if isinstance(said, list) else []


def _texts(value: Any, *, low: int) -> Iterator[str]:
    """Every string in `value` of at least `low` words, in order."""
    if isinstance(value, str):
        if len(words(value)) >= low or len(terms(value)) >= low:
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one, low=low)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one, low=low)
