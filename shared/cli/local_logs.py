"""A workflow's log lines from the home folder's log, and those that are still to come."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from shared.cli.log_lines import Line, from_fields
from shared.clock import Clock

_LOOK_SECONDS: Final = 0.25
_LONGEST_LINE_BYTES: Final = 1 << 20


async def lines(log: Path, workflow: str, *, follow: bool, clock: Clock) -> AsyncIterator[Line]:
    """What the log, and the one before it, say of a workflow, in the order in which it was written.

    With `follow` it goes on until a line ends the workflow. A log that grew too large gets another name from whoever opens it next:
    the old one is read to its end, and then the new one.
    """
    ended, file = False, _open(log.with_name(f"{log.name}.1")) or _open(log)
    try:
        while True:
            # Asked before reading: what is written to the old log is written before there is a new one.
            following = _open(log) if file is None or not _is(log, file) else None
            for line in () if file is None else _new_lines(file, workflow):
                ended = line.ends_after(ended)
                yield line
            if following is not None:
                if file is not None:
                    file.close()
                file = following
            elif ended or not follow:
                return
            else:
                await clock.sleep(_LOOK_SECONDS)
    finally:
        if file is not None:
            file.close()


def _new_lines(file: BinaryIO, workflow: str) -> Iterator[Line]:
    """From where `file` stands: every line of the workflow that is complete."""
    wanted = workflow.encode()
    while True:
        begin = file.tell()
        raw = file.readline(_LONGEST_LINE_BYTES)
        if not raw.endswith(b"\n") and len(raw) < _LONGEST_LINE_BYTES:
            file.seek(begin)  # the rest is still being written
            return
        if wanted in raw and (found := _parsed(raw, workflow)) is not None:
            yield found


def _parsed(raw: bytes, workflow: str) -> Line | None:
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return from_fields(fields) if isinstance(fields, dict) and fields.get("workflowId") == workflow else None


def _open(log: Path) -> BinaryIO | None:
    try:
        return log.open("rb")
    except FileNotFoundError:
        return None


def _is(log: Path, file: BinaryIO) -> bool:
    """Whether the log is still the file that we read."""
    try:
        return log.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return True  # nobody has opened the next one yet
