"""`/v1/documents`: the texts that agents may search."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import AwareDatetime, Field
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from functions.gateway.auth import allowed
from functions.gateway.models import EXAMPLE_MOMENT, Part
from functions.gateway.problems import BAD_REQUEST, INVALID, NOT_FOUND, TOO_LARGE, UNSUPPORTED, documented, problem
from functions.gateway.workflows import Live, json_answer
from shared.state import document

_SHA256 = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
_NAME = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"
_TEXT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "UTF-8 text.",
        "content": {
            "text/plain": {
                "schema": {"type": "string", "minLength": 1, "pattern": r"^[^\x00]*[^\x00\s][^\x00]*$"},
                "example": "Ferries to Oban sail at 7:30. In a storm the harbour master decides.",
            }
        },
    }
}


class _DocumentName(StringConvertor):
    """Slashes and line ends included. `search` is a path of its own: the command line alone knows a document of that name."""

    regex = r"(?!search$)(?s:.+)"


register_url_convertor("document", _DocumentName())

_READING = [Depends(allowed("read"))]
_CHANGING = [Depends(allowed("admin"))]

documents = APIRouter(prefix="/v1/documents", tags=["documents"])


class KnownDocument(Part):
    """A document that agents may search."""

    name: str = Field(description="As it was added.", examples=["handbook/ferries.md"])
    sha256: str = Field(description="Of the text.", examples=[_SHA256])
    size_bytes: int = Field(description="Of the text.", examples=[68])
    passages: int = Field(description="How many passages it was cut into.", examples=[1])
    added_at: AwareDatetime = Field(description="When it was added in this form.", examples=[EXAMPLE_MOMENT])


class DocumentList(Part):
    """Every document, by name."""

    items: list[KnownDocument] = Field(description="All of them.")


class Passage(Part):
    """A part of a document."""

    document: str = Field(description="The document's name.", examples=["handbook/ferries.md"])
    position: int = Field(description="Which of its passages, counted from 0.", examples=[0])
    text: str = Field(description="The passage.", examples=["Ferries to Oban sail at 7:30."])


class Passages(Part):
    """What was found, the best first."""

    items: list[Passage] = Field(description="The passages.")


class Put(Part):
    """What became of a document."""

    name: str = Field(description="The document.", examples=["handbook/ferries.md"])
    outcome: Literal["added", "replaced", "unchanged"] = Field(description="`unchanged`: it was there.", examples=["added"])
    sha256: str = Field(description="Of the text.", examples=[_SHA256])
    passages: int = Field(description="How many passages it was cut into.", examples=[1])


DocumentName = Annotated[
    str,
    Path(
        min_length=1,
        max_length=200,
        pattern=_NAME,
        json_schema_extra={"format": "printable"},
        description="Up to 200 characters that can be printed; slashes too, but not `search`.",
        examples=["handbook/ferries.md"],
    ),
]


@documents.get("", response_model=DocumentList, dependencies=_READING)
async def list_documents(live: Live) -> Response:
    """Every document that agents may search, by name."""
    return json_answer({"items": await live.store.list_documents()})


@documents.get("/search", response_model=Passages, responses=documented(INVALID), dependencies=_READING)
async def search_documents(
    live: Live,
    query: Annotated[
        str, Query(min_length=1, max_length=1000, description='Words, "a phrase", or, -not.', examples=["late ferry"])
    ],
    limit: Annotated[int, Query(ge=1, le=50, description="How many at most.")] = 10,
) -> Response:
    """The passages that fit best, as agents find them: those with all words or, where there are none, with any of them."""
    return json_answer({"items": await live.store.search_documents(query, limit)})


@documents.put(
    "/{name:document}",
    response_model=Put,
    responses=documented(BAD_REQUEST, NOT_FOUND, TOO_LARGE, UNSUPPORTED, INVALID),
    openapi_extra=_TEXT,
    dependencies=_CHANGING,
)
async def put_document(live: Live, name: DocumentName, request: Request) -> Response:
    """Keep a text for search, in place of what was under its name. What is larger than a request may be, the command line adds."""
    if not request.headers.get("content-type", "").lower().startswith("text/"):
        return problem(UNSUPPORTED, "a document is text: send it with Content-Type: text/plain, in UTF-8")
    known = document(name, await request.body())
    outcome = await live.store.put_document(known)
    return json_answer({"name": name, "outcome": outcome, "sha256": known.sha256, "passages": len(known.passages)})


@documents.delete(
    "/{name:document}",
    status_code=204,
    response_class=Response,
    responses=documented(NOT_FOUND, INVALID),
    dependencies=_CHANGING,
)
async def remove_document(live: Live, name: DocumentName) -> Response:
    """Forget a document."""
    await live.store.remove_document(name)
    return Response(status_code=204)
