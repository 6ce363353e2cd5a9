"""The model's way to the documents that the platform holds. What finds them is given: the store, or nothing."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from shared.ai.tools.declaring import Tool, declare

Search = Callable[[str, int], Awaitable[Sequence[Mapping[str, Any]]]]
"""A query and how many passages at most → the passages that fit best, the best first: `{document, position, text}`."""


def searching(search: Search) -> Tool:
    """The tool `search_documents` over `search`."""

    async def search_documents(
        query: Annotated[str, "The words to look for, in the documents' language.", Field(min_length=1, max_length=400)],
        limit: Annotated[int, "How many passages at most; 5 unless given.", Field(ge=1, le=10)] = 5,
    ) -> list[dict[str, Any]]:
        """Search the platform's own documents. Gives the passages that fit best, each with its document, position and text."""
        return [dict(passage) for passage in await search(query, limit)]

    return declare(search_documents)
