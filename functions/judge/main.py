"""Entry point of the judge."""

from functions.judge.agent import run
from shared.runtime import agent

judge = agent(__file__, run)
