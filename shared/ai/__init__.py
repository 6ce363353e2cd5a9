"""Models and prompts: what agents ask, whom they ask, and in what form the answer comes."""

from shared.ai.base import Account, Declaration, Hold, JsonSchema, Model, Price, Reply, Request, ToolCall, Turn
from shared.ai.opening import open_model
from shared.ai.prompts import Prompt, load_prompt
from shared.ai.schema import check, check_schema
from shared.ai.tools import CallKeys, Tool, ToolContext, ToolLoop, builtin, declare

__all__ = [
    "Account",
    "CallKeys",
    "Declaration",
    "Hold",
    "JsonSchema",
    "Model",
    "Price",
    "Prompt",
    "Reply",
    "Request",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolLoop",
    "Turn",
    "builtin",
    "check",
    "check_schema",
    "declare",
    "load_prompt",
    "open_model",
]
