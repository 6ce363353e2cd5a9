"""Shell completion, in a real bash; zsh and fish where they are installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = """
set -eu
source "$1"
COMP_WORDS=({words})
COMP_CWORD={at}
_agent_team_completion "$2"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def shell(name: str, script: str, home: Path, *arguments: str, **more: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "AGENT_TEAM_HOME": str(home / "data"), **more}
    done = subprocess.run(
        [name, "-c", script, name, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(home: Path, name: str) -> Path:
    """The script that the command shows in that shell."""
    shown = shell(
        "bash",
        'exec "$1" --show-completion "$2"',
        home,
        str(ROOT / "agent-team"),
        name,
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    file = home / f"completion.{name}"
    file.write_text(shown)
    return file


@pytest.mark.parametrize(
    ("words", "at", "found", "others"),
    [
        (["sub"], 1, {"submit"}, {"show"}),
        (["submit", "re"], 2, {"report"}, {"submit"}),
        (["run", ""], 2, {"report"}, set()),
        (["workflows", "show", "rep"], 3, {"report"}, set()),
        (["dead-letters", ""], 2, {"list", "show", "redrive"}, set()),
        (["watch", "--"], 2, {"--url", "--json"}, {"--verbose"}),
    ],
)
@pytest.mark.parametrize("typed", ["./agent-team", "~/here/agent-team"])
def test_bash_completes_the_command_that_is_typed(
    tmp_path: Path, typed: str, words: list[str], at: int, found: set[str], others: set[str]
) -> None:
    (tmp_path / "here").symlink_to(ROOT)
    line = " ".join([typed, *(f"'{word}'" for word in words)])
    completed = shell("bash", BASH.format(words=line, at=at), tmp_path, str(script(tmp_path, "bash")), typed)
    assert set(completed.splitlines()) >= found
    assert not set(completed.splitlines()) & others
    assert not (tmp_path / "data").exists()


def test_bash_finds_the_shell_by_itself_and_installs_what_a_new_shell_reads(tmp_path: Path) -> None:
    said = shell("bash", '"$1" --install-completion; true', tmp_path, str(ROOT / "agent-team"))
    assert "bash completion installed in" in said
    listed = shell("bash", "source ~/.bashrc; complete -p agent-team", tmp_path)
    assert listed == "complete -o default -F _agent_team_completion agent-team\n"


def test_the_scripts_of_zsh_and_fish_ask_the_command_that_is_typed(tmp_path: Path) -> None:
    assert "complete_zsh ${~words[1]} " in script(tmp_path, "zsh").read_text()
    assert script(tmp_path, "fish").read_text().count("(commandline -opc)[1]") == 2


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_the_script_is_one_that_the_shell_can_read(tmp_path: Path, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    shell(name, f"{name} -n {script(tmp_path, name)}", tmp_path)


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_what_zsh_and_fish_ask_for_is_answered(tmp_path: Path, name: str) -> None:
    asked = {
        "_AGENT_TEAM_COMPLETE": f"complete_{name}",
        "_TYPER_COMPLETE_ARGS": "./agent-team submit re",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    assert "report" in shell("bash", "exec ./agent-team", tmp_path, **asked)
