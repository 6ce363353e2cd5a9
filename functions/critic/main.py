"""Entry point of the critic."""

from functions.critic.agent import run
from shared.runtime import agent

critic = agent(__file__, run)
