"""docs/settings.md: every variable with its default and meaning, from shared/config and the comments of .env.example.

`make docs` writes it, and a test holds it to both.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.config import Settings, variable_of

EXAMPLE: Final = Path(__file__).resolve().parents[1] / ".env.example"
_KEY_FIELD: Final = "comm_hmac_keys"
_KEY_VARIABLE: Final = "COMM_HMAC_KEY_<NAME>"
_ALIAS: Final = "APP_ENV"
_HEAD: Final = """# Settings

Every environment variable of the platform. A page that is made: `make docs` writes it from `shared/config` and the comments of
[`.env.example`](../.env.example). Blank means unset, and the environment wins over a `.env` file. All mistakes are reported at once
when a process starts, and `./agent-team doctor` tells what is set up. "Required" means required when `NODE_ENV` is `production`.

**Secret** ones are kept in Secret Manager in the cloud and are shown nowhere; how to change a variable there stands in the
[runbook](RUNBOOK.md#change-a-variable).
"""


def page() -> str:
    """The whole page."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    yield _HEAD
    defaults = Settings().redacted()
    fields = {variable_of(name): field for name, field in Settings.model_fields.items() if name != _KEY_FIELD}
    fields |= {_ALIAS: Settings.model_fields["app_env"], _KEY_VARIABLE: Settings.model_fields[_KEY_FIELD]}
    for title, variables in _sections():
        yield f"\n## {title}\n\n| variable | default | takes | meaning |\n|---|---|---|---|\n"
        for variable, meaning in variables:
            field = fields[variable]
            # Optional secrets are unions: the type's name is somewhere in the annotation.
            secret = " **secret**" if "SecretStr" in str(field.annotation) else ""
            default = "" if field.default_factory is not None else defaults.get(variable, "")
            shown = f"`{default}`" if default else "-"
            yield f"| `{variable}`{secret} | {shown} | {_cell(str(field.description))} | {_cell(meaning)} |\n"


def _sections() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The sections of .env.example by title, each with its variables and what their comments say."""
    title, found, comment = "", list[tuple[str, str]](), list[str]()
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"# --- (.+) ---", line):
            if found:
                yield title, found
            title, found, comment = heading[1], [], []
        elif line.startswith("#"):
            comment.append(line.removeprefix("# "))
        elif variable := re.match(r"([A-Z0-9_]+)=", line):
            name = _KEY_VARIABLE if variable[1].startswith("COMM_HMAC_KEY_") else variable[1]
            found.append((name, " ".join(comment)))
            comment = []
    yield title, found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<NAME>", "&lt;NAME&gt;")


if __name__ == "__main__":
    sys.stdout.write(page())
