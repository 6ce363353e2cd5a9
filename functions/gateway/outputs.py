"""`/v1/workflows/{id}/output` and those of its steps: whole, however large."""

from collections.abc import Iterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path
from starlette.responses import StreamingResponse

from functions.gateway.auth import allowed
from functions.gateway.problems import INVALID, NOT_FOUND, documented
from functions.gateway.strict import StrictRoute
from functions.gateway.workflows import PATH, Id, Live
from shared.errors import NotFound
from shared.messages.payloads import StepId
from shared.runtime import Runtime

outputs = APIRouter(prefix=PATH, tags=["workflows"], route_class=StrictRoute, dependencies=[Depends(allowed("read"))])
_CHUNK_BYTES: Final = 256 * 1024
_WHOLE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The output as JSON",
        "content": {"application/json": {"schema": {}, "example": {"text": "# Why ferries run late"}}},
    }
}


@outputs.get("/{id}/output", response_class=StreamingResponse, responses=_WHOLE | documented(NOT_FOUND))
async def show_output(live: Live, id: Id) -> StreamingResponse:
    """A workflow's output, whole, once it has ended with SUCCESS."""
    found = await live.store.get(id)
    if found["status"] != "SUCCESS":
        raise NotFound(f"{id} has no output; it is {found['status']}")
    return await _stream(live, found["output"])


@outputs.get("/{id}/steps/{step:path}/output", response_class=StreamingResponse, responses=_WHOLE | documented(NOT_FOUND, INVALID))
async def show_step_output(
    live: Live, id: Id, step: Annotated[StepId, Path(description="The step.", examples=["research/0"])]
) -> StreamingResponse:
    """A step's output, whole, once the step has ended with SUCCESS."""
    found = next((one for one in (await live.store.get(id))["steps"] if one["id"] == step), None)
    if found is None:
        raise NotFound(f"{id} has no step {step!r}")
    if found["status"] != "SUCCESS":
        raise NotFound(f"step {step!r} of {id} has no output; it is {found['status']}")
    return await _stream(live, found["output"])


async def _stream(live: Runtime, output: Any) -> StreamingResponse:
    """In pieces: a whole answer of more than 32 MB does not get out of Cloud Run."""
    data = await live.outputs.whole_json(output)
    return StreamingResponse(_pieces(data), media_type="application/json")


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]
