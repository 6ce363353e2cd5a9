"""Entry point of the scribe."""

from functions.scribe.agent import run
from shared.runtime import agent

scribe = agent(__file__, run)
