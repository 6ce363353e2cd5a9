"""The pages of the documentation, taken apart: commands, anchors, links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import TyperException

from shared.cli.app import app

ROOT = Path(__file__).parents[2]
RUNBOOK, DEPLOY, SECURITY, SETTINGS = (ROOT / "docs" / name for name in ("RUNBOOK.md", "deploy.md", "security.md", "settings.md"))
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "workflows").glob("*.md")))
"""What readers follow today. Decisions tell what was thought on their day."""

_FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:\./)?(?:agent-team|make|gcloud|terraform|set_variable|psql|curl|jq) [^`\n]+)`")
_SHELL = ("sh", "bash")
_CONTINUED = re.compile(r"\\\n\s*")
_ENDS = frozenset("();|&\n")
_REDIRECTIONS = frozenset("<>")
_KEYWORDS = frozenset({"if", "then", "else", "fi", "for", "while", "do", "done", "{", "}", "!"})
_STAND_INS = {"ID": "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD", "PORT": "8080", "SEQ": "1", "JSON": "{}", "NUMBER": "1"}
"""What is written for a value that the reader knows."""


@dataclass(frozen=True)
class Command:
    """One command: where it stands, and its words as a shell takes them apart, its variables left as they are."""

    page: Path
    line: int
    words: tuple[str, ...]
    mentioned: bool
    """It stands in a sentence, where what the reader adds may be left out."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {shlex.join(self.words)}"


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def prose_of(page: Path) -> str:
    """The page without its blocks."""
    return _FENCED.sub("", text_of(page))


@cache
def blocks(page: Path) -> tuple[tuple[int, str], ...]:
    """The shell's blocks of a page: line and text."""
    return tuple(
        (text_of(page).count("\n", 0, found.start(3)) + 1, found[3])
        for found in _FENCED.finditer(text_of(page))
        if found[2] in _SHELL
    )


@cache
def inline(page: Path) -> tuple[tuple[int, str], ...]:
    """The commands within sentences and tables."""
    text = re.sub(r"(?<!\\)\\\|", "|", text_of(page))  # a table's bar
    blank = _FENCED.sub(lambda found: "\n" * found[0].count("\n"), text)
    return tuple((blank.count("\n", 0, found.start()) + 1, found[1]) for found in _INLINE.finditer(blank))


def commands(*programs: str, pages: tuple[Path, ...] = PAGES) -> list[Command]:
    """Every command of these programs, of blocks and of sentences, with what stands before it (variables, keywords) taken away."""
    found = []
    for page in pages:
        for mentioned, parts in ((False, blocks(page)), (True, inline(page))):
            for first, text in parts:
                found += [Command(page, first + line, words, mentioned) for line, words in _taken_apart(text)]
    return [one for one in found if one.words[0].removeprefix("./") in programs]


def _taken_apart(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    lexer = shlex.shlex(_without_comments(_CONTINUED.sub(" ", text)), posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    line, skip = 0, False
    for token in (*lexer, "\n"):
        if not set(token) - _ENDS:
            if words:
                yield line, tuple(words)
            words, skip = [], False
            line += token.count("\n")
        elif not set(token) - _REDIRECTIONS - _ENDS:
            skip = True  # the file
        elif skip:
            skip = False
        elif words or not (token in _KEYWORDS or re.match(r"\w+=", token)):
            words.append(token)
    # Inside of double quotes a substitution is a command as well.
    for inner in re.findall(r"\$\(([^()]*)\)", text):
        if re.search(rf'"[^"\n]*{re.escape(inner)}[^"\n]*"', text):
            yield from ((0, words) for _, words in _taken_apart(inner))


def _without_comments(text: str) -> str:
    kept, quote, before, comment = [], "", "\n", False
    for sign in text:
        comment = (comment or (not quote and sign == "#" and before in " \t\n")) and sign != "\n"
        if not comment:
            kept.append(sign)
            if sign == quote:
                quote = ""
            elif not quote and sign in "'\"":
                quote = sign
        before = sign
    return "".join(kept)


def slugs(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    found: dict[str, int] = {}
    anchors = set(re.findall(r'<a id="([^"]+)"', text_of(page)))
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose_of(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        anchors.add(slug if slug not in found else f"{slug}-{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return anchors


def links(page: Path) -> list[str]:
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose_of(page))


@cache
def _command_line() -> Any:
    """`agent-team`'s own parser, whose verbs and options do nothing: `--install-completion` would change the tester's home."""

    def silenced(command: Any) -> Any:
        command.callback = None if getattr(command, "commands", None) else lambda **_: None
        for option in command.params:
            option.callback = None
        for inner in getattr(command, "commands", {}).values():
            silenced(inner)
        return command

    return silenced(typer.main.get_command(app))


def refusal(command: Command) -> str:
    """What `agent-team` has against a command; empty when it takes it."""
    given = [_STAND_INS.get(word, word) for word in command.words[1:]]
    try:
        _command_line().main(given, prog_name="agent-team", standalone_mode=False)
    except TyperException as error:
        message = str(getattr(error, "message", error)) or type(error).__name__
        incomplete = message.startswith(("Missing", "NoArgsIsHelp")) or message.endswith("requires an argument.")
        return "" if command.mentioned and incomplete else message
    return ""


def verbs() -> set[str]:
    """Every verb with its group: `run`, `keys api add`, …"""
    return set(_verbs(_command_line(), ()))


def _verbs(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(path)
    for name, one in (inner or {}).items():
        yield from _verbs(one, (*path, name))


def verb_of(words: tuple[str, ...], known: set[str]) -> str:
    """The verb that a command names: the longest of `known` that it begins with."""
    return max((verb for verb in known if list(words[1 : 1 + len(verb.split())]) == verb.split()), key=len, default="")
