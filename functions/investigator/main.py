"""Entry point of the investigator."""

from functions.investigator.agent import run
from shared.runtime import agent

investigator = agent(__file__, run)
