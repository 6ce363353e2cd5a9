"""Entry point of the coordinator."""

from functions.coordinator.agent import run
from shared.runtime import agent

coordinator = agent(__file__, run)
