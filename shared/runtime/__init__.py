"""The agent contract, and what carries it: agents import this room and nothing else."""

from shared.ai import Prompt, ToolContext
from shared.errors import InputError
from shared.runtime.colleagues import colleagues
from shared.runtime.contract import Result, Run, Task, Team
from shared.runtime.entry import Function, Handlers, agent, load, on_http, on_messages, worker
from shared.runtime.process import runtime
from shared.runtime.quoting import holds
from shared.runtime.wiring import Runtime

__all__ = [
    "Function",
    "Handlers",
    "InputError",
    "Prompt",
    "Result",
    "Run",
    "Runtime",
    "Task",
    "Team",
    "ToolContext",
    "agent",
    "colleagues",
    "holds",
    "load",
    "on_http",
    "on_messages",
    "runtime",
    "worker",
]
