"""`agent-team`: the command line, one verb per file."""

__all__ = ["main"]


def main() -> None:
    """Run the command that the process's arguments name, and end the process with its exit code."""
    from shared.cli.app import app

    app(prog_name="agent-team")
