"""Entry point of the chronicler."""

from functions.chronicler.agent import run
from shared.runtime import agent

chronicler = agent(__file__, run)
