"""Entry point of the researcher."""

from functions.researcher.agent import run
from shared.runtime import agent

researcher = agent(__file__, run)
