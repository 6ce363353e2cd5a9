"""The tools that a prompt may name in its `tools`."""

from collections.abc import Mapping
from typing import Final

from shared.ai.tools.calculating import calculate
from shared.ai.tools.declaring import Tool, declare
from shared.ai.tools.documents import Search, searching

NAMES: Final = ("calculate", "http_get", "search_documents")


def builtin(*, search: Search | None) -> Mapping[str, Tool]:
    """The built-in tools by name. Without `search` there is no `search_documents`: nobody could answer it."""
    # Imported here: an HTTP client that only a process whose agents fetch pages shall load.
    from shared.ai.tools.fetching import fetching

    offered = [declare(calculate), fetching()]
    return {tool.name: tool for tool in (offered if search is None else [*offered, searching(search)])}
