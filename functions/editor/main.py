"""Entry point of the editor."""

from functions.editor.agent import run
from shared.runtime import agent

editor = agent(__file__, run)
