"""Words, sentences and wording: pure functions of a text, for any language that Unicode knows.

Scripts without spaces are cut into pairs of characters. Stop words and hedges are known for English, German, French and Spanish;
other languages do without and lose only sharpness.
"""

# ruff: noqa: RUF001 -- real texts hold typographic quotes and dashes

import re
from collections.abc import Iterator

_SAY_NOTHING = """
a about above after again against all already also although always am among an and any are as at be because become been before
being below best between both but by can cannot could did do does doing done down during each either else even ever every few
find first for from further get give go had has have having he her here hers him his how however i if in instead into is it its
itself just keep last later least less let like made make makes many may me might mine more most much must my near need needs
neither never next no none nor not nothing now of off often on once one only or other our ours out over own per put quite rather
really said same say says second see seem several shall she should since so some still such take than that the their them then
there these they thing things third this those though through to together too two under until up upon us use used very via want
was way we well went were what when where whether which while who whole whom whose why will with within without would yes yet
you your aber als am an auch auf aus bei bin bis das dass dem den der des die doch durch ein eine einem einen einer eines er es
für haben hat hatte ich ihr im in ist ja kann kein keine mehr mit nach nicht noch nur oder ob ohne schon sehr sein seine sich
sie sind so über um und uns unter vom von vor war waren was weil wenn wer werden wie wir wird wo wurde wurden zu zum zur
zwischen au aux avec ce ces cette dans de des du elle en est et être il ils je la le les leur mais ne nous on ou où par pas plus
pour qu que qui sa se ses son sont sur un une vous al como con cuando del desde donde el ella entre era es esta este fue ha han
hay la las lo los más muy no o para pero por porque que se sin sobre su sus también una y ya
"""
STOPWORDS = frozenset(_SAY_NOTHING.split())
"""Words that say nothing about what a text is about, casefolded."""

_HEDGES = re.compile(
    r"\b(?:probably|perhaps|maybe|possibly|presumably|apparently|allegedly|unclear|unknown|unconfirmed|uncertain|tbd|"
    r"assum(?:e|es|ed|ing)|guess(?:ed)?|suspect(?:s|ed)?|seem(?:s|ed)?|might|(?-i:may)|roughly|we think|we believe|we hope|"
    r"not sure|vermutlich|wahrscheinlich|vielleicht|unklar|angeblich|peut-être|probablement|quizás|probablemente)\b",
    re.IGNORECASE,
)
_FIGURE = re.compile(
    r"(?<![\w.])(?:[€$£]\s?\d[\d.,]*(?<![.,])|"
    r"\d[\d.,:]*(?<![.,:])(?:\s?%|\s?(?:ms|s|h|km|kg|MB|GB)\b|(?<!:\d\d)(?<!\d\.\d)\s+[a-zß-ÿ]{3,})?|"
    r"(?i:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fourteen|fifteen|sixteen|twenty|thirty|forty|fifty|sixty|"
    r"hundred)\s+[a-z]{3,}|"
    r"(?:January|February|March|April|June|July|August|September|October|November|December)\b(?:\s\d{4})?|"
    r"May\s\d{4})"
)
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_END = re.compile(r"(?:[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？।]+[」』”]?)\s*")
_DANGLING = re.compile(
    r"(?:it|its|this|that|these|those|they|their|he|his|she|her|then|there|so|but|and|or|both|such|most of them|the latter|"
    r"er|sie|es|dies|diese|dieser|il|elle|cela|ils|esto|eso)\b",
    re.IGNORECASE,
)
_ABBREVIATED = """
e.g i.e etc vs cf dr mr mrs ms prof st no nr vol fig sec ch pp approx ca est inc ltd co corp dept gen gov min max avg incl excl
resp jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun a.m p.m u.s u.k u.n z.b d.h u.a s.o bzw usw
ggf evtl vgl str abs p.ex m mme
"""
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_MONTHS = frozenset(
    ("januar", "februar", "märz", "april", "mai", "juni", "juli", "august", "september", "oktober", "november", "dezember")
)


def words(text: str) -> list[str]:
    """The words of `text` as they are written."""
    return _WORD.findall(text)


def terms(text: str) -> list[str]:
    """The words of `text` that carry meaning, casefolded, without plural endings; scripts without spaces give character pairs."""
    return [term for word in words(text) for term in _terms_of(word)]


def _terms_of(word: str) -> Iterator[str]:
    if _UNSPACED.search(word):
        yield from (word[at : at + 2] for at in range(max(1, len(word) - 1)))
        return
    folded = word.casefold().removesuffix("'s").removesuffix("’s")
    if folded in STOPWORDS or (len(folded) < 2 and not folded.isdigit()):
        return
    if len(folded) > 4 and folded.endswith("ies"):
        yield folded[:-3] + "y"
    elif len(folded) > 3 and folded.endswith("s") and not folded.endswith(("ss", "us", "is")):
        yield folded[:-1]
    else:
        yield folded


def sentences(text: str) -> list[str]:
    """`text` cut after each sentence; abbreviations, initials, ordinals and decimal numbers end none."""
    found: list[str] = []
    start = 0
    for end in _END.finditer(text):
        if _ends_sentence(text, start, end):
            found.append(text[start : end.end()].strip())
            start = end.end()
    rest = text[start:].strip()
    return [*found, rest] if rest else found


def _ends_sentence(text: str, start: int, end: re.Match[str]) -> bool:
    following = text[end.end() : end.end() + 20].lstrip("\"'“‘«([*_`")
    if not following or end[0][0] in "。！？।":
        return True
    if following[0].islower():
        return False
    if not end[0].startswith(".") or end[0].startswith(".."):
        return True
    before = text[max(start, end.start() - 20) : end.start()].split()
    last = before[-1].lstrip("(\"'“").casefold() if before else ""
    if last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha()):
        return False
    # "3. März": an ordinal, not an end. "38. The" is an end.
    return not (last.isdigit() and len(last) <= 2 and following.split()[0].casefold().rstrip(".,") in _MONTHS)


def hedges(text: str) -> list[str]:
    """The words of `text` that say that something is not certain, each once, in order."""
    return list(dict.fromkeys(found.casefold() for found in _HEDGES.findall(text)))


def figures(text: str) -> list[str]:
    """The numbers and dates of `text`, with what they count: `38 %`, `47 minutes`, `13:58`, `nine calls`, `June`."""
    found = []
    for figure in _FIGURE.findall(text):
        number, _, unit = figure.partition(" ")
        found.append(number if unit.casefold() in STOPWORDS else figure)
    return list(dict.fromkeys(found))


def is_question(sentence: str) -> bool:
    """Whether `sentence` asks something."""
    return sentence.rstrip("\"'”’»)*_ ").endswith(("?", "？"))


def is_dangling(sentence: str) -> bool:
    """Whether `sentence` begins with a word that points back to the sentence before it."""
    return _DANGLING.match(sentence.lstrip("\"'“‘«([")) is not None


def closed(sentence: str) -> str:
    """`sentence` with a full stop where it has no ending of its own."""
    bare = sentence.rstrip()
    return (
        bare
        if bare.rstrip("\"'”’»)]*_`").endswith((".", "!", "?", "…", ":", "。", "！", "？", "।"))
        else f"{bare.rstrip(',;–—-')}."
    )


def capitalised(text: str) -> str:
    """`text` with a capital at its beginning, the rest as it is."""
    return text[:1].upper() + text[1:]


def shortened(text: str, limit: int) -> str:
    """`text` in at most `limit` characters: whole sentences where at least one fits, else whole words and an ellipsis."""
    if len(text) <= limit:
        return text
    kept = ""
    for sentence in sentences(text[: limit + 1])[:-1]:
        longer = f"{kept} {sentence}".strip()
        if len(longer) > limit:
            break
        kept = longer
    if kept:
        return kept
    cut = text[: max(0, limit - 1)]
    return f"{cut.rsplit(None, 1)[0] if ' ' in cut.strip() else cut}…"[:limit]
