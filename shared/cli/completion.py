"""Completion in bash, zsh and fish: `agent-team --install-completion`, `agent-team --show-completion`.

Typer's scripts ask the `agent-team` that is on the PATH, and bash's does not find one under `~`. These ask the command that is
typed, so that `./agent-team` of a checkout completes as well.
"""

from typer import _completion_shared

_BASH = """
%(complete_func)s() {
    local IFS=$'\\n'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
                   %(autocomplete_var)s=complete_bash "${1/#\\~\\//$HOME/}" 2>/dev/null ) )
    return 0
}

complete -o default -F %(complete_func)s %(prog_name)s
"""
_ZSH = """
#compdef %(prog_name)s

%(complete_func)s() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" %(autocomplete_var)s=complete_zsh ${~words[1]} 2>/dev/null)
}

compdef %(complete_func)s %(prog_name)s
"""
_ASK = (
    "env %(autocomplete_var)s=complete_fish _TYPER_COMPLETE_FISH_ACTION={} "
    "_TYPER_COMPLETE_ARGS=(commandline -cp) (commandline -opc)[1]"
)
_FISH = (
    f'complete --command %(prog_name)s --no-files --arguments "({_ASK.format("get-args")})" --condition "{_ASK.format("is-args")}"'
)


def prepare() -> None:
    """Make typer show and install these scripts."""
    _completion_shared._completion_scripts.update(bash=_BASH, zsh=_ZSH, fish=_FISH)
