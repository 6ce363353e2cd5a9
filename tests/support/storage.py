"""Doubles of the two object stores, over real HTTP, as far as the platform asks them.

Google's: https://cloud.google.com/storage/docs/json_api/v1/objects, its upload paths and its preconditions. Supabase's:
https://supabase.com/docs/reference/self-hosting-storage, which answers most errors with 400 and says in the body what it means.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.local.server import bind, serve

BUCKET = "outputs"


@dataclass
class Storage:
    """What a store has, what it was asked, and how it shall fail next."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    custom_times: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """Answers of the next calls, whatever they ask."""
    key: str = "a-key-that-nobody-may-see"
    _uploads: dict[str, str] = field(default_factory=dict)

    def failure(self, request: Request) -> int | None:
        self.asked.append((request.method, request.url.path))
        return self.statuses.pop(0) if self.statuses else None

    # Google's

    async def upload(self, request: Request) -> Response:
        status = self.failure(request)
        if status is not None:
            return _google(status)
        if request.path_params["bucket"] != BUCKET:
            return _google(404, "The specified bucket does not exist.")
        if "upload_id" in request.query_params:
            about = orjson.loads(self._uploads.pop(request.query_params["upload_id"]))
            return self._made(about, await request.body(), request)
        if request.query_params["uploadType"] == "resumable":
            upload = str(len(self.asked))
            self._uploads[upload] = (await request.body()).decode()
            return Response(headers={"location": f"{request.url}&upload_id={upload}"})
        about, data = _parts(request.headers["content-type"], await request.body())
        return self._made(orjson.loads(about), data, request)

    def _made(self, about: dict[str, Any], data: bytes, request: Request) -> Response:
        name = about["name"]
        if request.query_params.get("ifGenerationMatch") == "0" and name in self.objects:
            return _google(412, "At least one of the pre-conditions you specified did not hold.")
        if "crc32c" in about and about["crc32c"] != _crc32c(data):
            return _google(400, "the checksum is another")
        self.objects[name] = data
        self.custom_times[name] = about["customTime"]
        return self._described(name)

    async def object(self, request: Request) -> Response:
        status = self.failure(request)
        if status is not None:
            return _google(status)
        name = request.path_params["name"]
        if request.path_params["bucket"] != BUCKET:
            return _google(404, "The specified bucket does not exist.")
        if name not in self.objects:
            return _google(404, f"No such object: {BUCKET}/{name}")
        if request.query_params.get("alt") == "media":
            data = self.objects[name]
            return Response(data, headers={"x-goog-hash": f"crc32c={_crc32c(data)}"})
        if request.method == "PATCH":
            self.custom_times[name] = orjson.loads(await request.body())["customTime"]
        return self._described(name)

    def _described(self, name: str) -> Response:
        data = self.objects[name]
        about = {"name": name, "bucket": BUCKET, "size": str(len(data)), "generation": "1", "metageneration": "1"}
        checks = {"crc32c": _crc32c(data), "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode()}
        return _json(200, {**about, **checks, "customTime": self.custom_times[name]})

    # Supabase's

    async def supabase(self, request: Request) -> Response:
        status = self.failure(request)
        if status is not None:
            return _supabase(status, "failure", "it fails")
        if request.headers.get("authorization") != f"Bearer {self.key}" or request.headers.get("apikey") != self.key:
            return _supabase(403, "Unauthorized", "invalid signature")
        bucket, _, name = request.path_params["path"].removeprefix("authenticated/").partition("/")
        if bucket != BUCKET:
            return _supabase(404, "Bucket not found", "Bucket not found")
        if request.method == "POST":
            if name in self.objects and request.headers["x-upsert"] == "false":
                return _supabase(409, "Duplicate", "The resource already exists")
            self.objects[name] = await request.body()
            return _json(200, {"Key": f"{bucket}/{name}"})
        if name not in self.objects:
            return _supabase(404, "not_found", "Object not found")
        return Response(self.objects[name])


@asynccontextmanager
async def storage() -> AsyncIterator[Storage]:
    """Both of them behind one address; what is in the one is in the other."""
    double = Storage()
    app = Starlette(
        routes=[
            Route("/upload/storage/v1/b/{bucket}/o", double.upload, methods=["POST", "PUT"]),
            Route("/download/storage/v1/b/{bucket}/o/{name:path}", double.object, methods=["GET"]),
            Route("/storage/v1/b/{bucket}/o/{name:path}", double.object, methods=["GET", "PATCH"]),
            Route("/storage/v1/object/{path:path}", double.supabase, methods=["GET", "POST"]),
        ]
    )
    listening = bind("127.0.0.1", 0)
    double.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    started = asyncio.Event()
    serving = asyncio.create_task(serve(app, listening, on_started=started.set))
    try:
        await started.wait()
        yield double
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def _parts(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """What an object is called, and what it holds, from a multipart/related body."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    _, about, data, _ = body.split(b"--" + boundary, 3)
    bare = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in (about, data)]
    return bare[0], bare[1]


def _crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def _google(status: int, message: str = "it fails") -> Response:
    return _json(status, {"error": {"code": status, "message": message}})


def _supabase(status: int, error: str, message: str) -> Response:
    return _json(status if status >= 500 else 400, {"statusCode": str(status), "error": error, "message": message})


def _json(status: int, content: Any) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
