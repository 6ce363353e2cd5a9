"""`python -m shared.cli`, where `agent-team` is not installed as a command."""

from shared.cli import main

main()
