"""What models may call: typed functions, declared, bounded, and told apart from instructions."""

from shared.ai.tools.builtin import NAMES, builtin
from shared.ai.tools.declaring import Tool, ToolContext, declare
from shared.ai.tools.documents import Search
from shared.ai.tools.loop import CallKeys, ToolLoop

__all__ = ["NAMES", "CallKeys", "Search", "Tool", "ToolContext", "ToolLoop", "builtin", "declare"]
