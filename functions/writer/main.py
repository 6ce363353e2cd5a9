"""Entry point of the writer."""

from functions.writer.agent import run
from shared.runtime import agent

writer = agent(__file__, run)
