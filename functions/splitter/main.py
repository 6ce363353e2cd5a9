"""Entry point of the splitter."""

from functions.splitter.agent import run
from shared.runtime import agent

splitter = agent(__file__, run)
