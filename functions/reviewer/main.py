"""Entry point of the reviewer."""

from functions.reviewer.agent import run
from shared.runtime import agent

reviewer = agent(__file__, run)
