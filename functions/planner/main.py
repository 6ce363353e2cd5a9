"""Entry point of the planner: its prompt is all it needs."""

from shared.runtime import agent

planner = agent(__file__)
