"""Entry point of the triager: its prompt is all it needs."""

from shared.runtime import agent

triager = agent(__file__)
