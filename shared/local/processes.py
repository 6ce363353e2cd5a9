"""Processes of the local platform's own: started, watched, started again when they end, and ended with it."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TextIO

from shared.errors import ConfigurationError

_log = logging.getLogger(__name__)
_START_SECONDS: Final = 60.0
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 5.0
_LAST_WORDS_SECONDS: Final = 1.0
_HEALTHY_SECONDS: Final = 10.0
"""A process that lived for so long is started again without delay."""
_DYING_WITH_US: Final = (
    sys.executable,
    *("-I", "-S", "-c"),
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])",
)
"""Becomes the command that follows, which the kernel ends (PR_SET_PDEATHSIG, SIGTERM; prctl(2)) when we die without a word.

A hook of ours between fork and exec could do the same, and crash: what threads were doing at the fork stays half done there.
"""


class Process:
    """One child, which is started again whenever it ends, until `stop`.

    `ready` returns once it answers; None for one that prints a line when it does. All that it prints goes to `log`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: TextIO,
        ready: Callable[[], Awaitable[None]] | None,
        input: bytes | None = None,
    ) -> None:
        self.name = name
        self.starts = 0
        """How often it was started."""
        self._command = command
        self._environment = environment
        self._log = log
        self._ready = self._said if ready is None else ready
        self._speaks = ready is None
        self._input = input
        self._process: asyncio.subprocess.Process | None = None
        self._spoke = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and return when it is ready. Raises ConfigurationError when it ends before, or is not ready within a minute."""
        process = await self._spawn()
        ready, ended = asyncio.ensure_future(self._ready()), asyncio.ensure_future(process.wait())
        try:
            done, _ = await asyncio.wait({ready, ended}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        if ready not in done or ready.exception() is not None:
            what = f"ended with status {process.returncode}" if process.returncode is not None else "does not answer"
            await self.stop(grace_seconds=1)
            raise ConfigurationError(f"{self.name} {what}; what it said is at the end of {self._log.name}")
        self._watching = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    def kill(self) -> None:
        """End it at once, with all its own children, as a power cut does. It is started again."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end in order. It is started again."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    async def stop(self, *, grace_seconds: float) -> None:
        """End it in order, or after the grace period at once."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        process = self._process
        if process is None:
            return
        self.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await process.wait()
        self.kill()
        await process.wait()
        if self._listening is not None:
            # What it said last is in the log, too.
            await asyncio.wait({self._listening}, timeout=_LAST_WORDS_SECONDS)

    async def _spawn(self) -> asyncio.subprocess.Process:
        self.starts += 1
        process = self._process = await asyncio.create_subprocess_exec(
            *(_DYING_WITH_US if sys.platform == "linux" else ()),
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL if self._input is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if self._speaks else self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C in a terminal is for us, and we end them in order
        )
        if self._input is not None:
            assert process.stdin is not None
            process.stdin.write(self._input)
            process.stdin.close()
        if self._speaks:
            self._listening = asyncio.create_task(self._listen(process), name=f"listen to {self.name}")
        return process

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._spoke.set()
            self._log.write(line.decode(errors="replace"))
            self._log.flush()

    async def _said(self) -> None:
        await self._spoke.wait()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_SECONDS
        while self._process is not None:
            since = loop.time()
            status = await self._process.wait()
            if loop.time() - since >= _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            _log.warning("%s ended with status %d and is started again", self.name, status)
            self.kill()  # a server whose main process died may have left workers that hold its port
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            await self._spawn()
