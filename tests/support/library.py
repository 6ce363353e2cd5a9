"""The workflows that come with the platform, each with what its page promises: a command that runs an example, and the output."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from shared.cli.inputs import read_input
from shared.runtime.spec import load_functions
from shared.workflows import Definition, load_definitions

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.yaml"))
AGENTS = sorted(name for name, spec in load_functions().items() if spec.is_agent)
_COMMAND = re.compile(r"^\./agent-team run (.+)$", re.MULTILINE)
_OUTPUT = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def definitions() -> dict[str, Definition]:
    """Every definition by its name."""
    return load_definitions(ROOT / "workflows", agents=AGENTS)


def page(workflow: str) -> str:
    """What its page says."""
    return (ROOT / "docs" / "workflows" / f"{workflow}.md").read_text(encoding="utf-8")


def example(workflow: str) -> dict[str, Any]:
    """The input that the first command on its page gives: `./agent-team run NAME --input FILE`, or with `--param`."""
    said = (shlex.split(line, comments=True) for line in _COMMAND.findall(page(workflow)))
    _, *options = next(words for words in said if words[0] == workflow)
    given = list(zip(options[::2], options[1::2], strict=True))
    files = [value for name, value in given if name == "--input"]
    return read_input(
        definitions()[workflow],
        source=str(ROOT / files[0]) if files else None,
        params=[value for name, value in given if name in ("-p", "--param")],
        max_bytes=524_288,
    )


def documented_output(workflow: str) -> Any:
    """The output that its page shows: the first JSON in it."""
    (shown, *_) = _OUTPUT.findall(page(workflow))
    return orjson.loads(shown)


def differences(output: Any, shown: Any, at: str = "output") -> list[str]:
    """Where `output` is of another shape than what is `shown`: names and types.

    A list's items are all like the first shown; what is shown as null may be anything.
    """
    if shown is None:
        return []
    if isinstance(shown, dict) and isinstance(output, dict):
        lonely = [f"{at}.{name} is only in one of them" for name in sorted(shown.keys() ^ output.keys())]
        common = sorted(shown.keys() & output.keys())
        return lonely + [one for name in common for one in differences(output[name], shown[name], f"{at}.{name}")]
    if isinstance(shown, list) and isinstance(output, list):
        return [one for place, item in enumerate(output) for one in differences(item, shown[0], f"{at}[{place}]")] if shown else []
    number = isinstance(shown, int | float) and isinstance(output, int | float)
    return [] if number or type(output) is type(shown) else [f"{at} is {type(output).__name__}, not {type(shown).__name__}"]
