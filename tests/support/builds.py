"""Builds of the platform in folders of their own, and every function as a process of one of them, replaced one after the other."""

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import httpx

from shared.local.processes import Process
from shared.runtime.spec import load_functions
from tests.support.servers import free_port

_ROOT = Path(__file__).parents[2]
_OVER_HTTP = ("gateway", "sweeper")
_GRACE_SECONDS = 15.0

_DEFINITION = """\
name: small
version: 1
description: Every agent of the report once, and two critics.
input: {brief: {type: string, required: true}}
steps:
  - {id: plan, agent: planner, input: {brief: "{{ input.brief }}"}}
  - id: research
    agent: researcher
    needs: [plan]
    input: {question: "{{ steps.plan.output.title }}", brief: "{{ input.brief }}"}
  - id: draft
    agent: writer
    needs: [plan, research]
    input: {plan: "{{ steps.plan.output }}", findings: ["{{ steps.research.output }}"]}
  - {id: debate, pattern: debate, needs: [draft], with: {subject: "{{ steps.draft.output.text }}", rounds: 1}}
output: "{{ steps.debate.output }}"
"""
STEPS = 7
"""That an agent works on in each of these workflows; each calls the model once."""
PARENTS = 2
"""Steps that only stand for others: the debate, and the outcome of its round."""

_COUNTED = """

# A test's: each call takes a while, as calls of models do, and is told to a file as it begins and as it ends.
import asyncio as _asyncio
import os as _os
import sys as _sys

_generate = OfflineModel.generate


def _tell(what):
    file = _os.open(_os.environ["MODEL_CALLS"], _os.O_WRONLY | _os.O_APPEND | _os.O_CREAT, 0o600)
    _os.write(file, f"{what} BUILD {_sys.argv[-1]}\\n".encode())
    _os.close(file)


async def _counted(self, request):
    _tell("began")
    await _asyncio.sleep(0.1)
    reply = await _generate(self, request)
    _tell("ended")
    return reply


OfflineModel.generate = _counted
"""


def copy(folder: Path, name: str, *, edits: Mapping[str, tuple[str, str]]) -> Path:
    """A build called `name`, in a folder: the code as it is here, with text replaced in files; its model counts its calls."""
    root = folder / name
    for part in ("shared", "functions", "workflows", "supabase"):
        shutil.copytree(_ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "main.py", root)
    (root / "workflows" / "small.yaml").write_text(_DEFINITION, encoding="utf-8")
    with (root / "shared" / "ai" / "offline" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(_COUNTED.replace("BUILD", name))
    for place, (before, after) in edits.items():
        text = (root / place).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{place} has {before!r} not exactly once"
        (root / place).write_text(text.replace(before, after), encoding="utf-8")
    return root


class Rollout:
    """Every function as one process, each of some build. The log of each build is a file in `folder`."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.functions = sorted(load_functions())
        self.build_of: dict[str, str] = {}
        self.gateway = ""
        self.sweeper = ""
        """Where they answer. An address changes when its process is replaced."""
        self._processes: dict[str, Process] = {}
        self._variables = {**variables, "MODEL_CALLS": str(folder / "calls")}
        self._files = ExitStack()
        self._logs: dict[str, TextIO] = {}

    async def start(self, build: Path) -> None:
        """Every function, of one build."""
        # Two at a time: what starts is what a machine of two cores is busy with.
        places = asyncio.Semaphore(2)

        async def one(name: str) -> None:
            async with places:
                await self._start(name, build)

        await asyncio.gather(*(one(name) for name in self.functions))

    async def replace(self, build: Path, name: str, *, meanwhile: Callable[[], Awaitable[None]]) -> None:
        """Start `name` anew beside the old process; once it works, await `meanwhile` and ask the old one to end; wait for that."""
        old, was = self._processes[name], self.build_of[name]
        await self._start(name, build)
        await meanwhile()
        with (self.folder / "calls").open("a") as file:
            file.write(f"asked {was} {name}\n")
        await old.stop(grace_seconds=_GRACE_SECONDS)

    def calls(self) -> list[tuple[str, str, str]]:
        """(`began` or `ended`, build, function) of each call of the model, and `asked` where a process was asked to end."""
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [(what, build, function) for what, build, function in map(str.split, lines)]

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop(grace_seconds=_GRACE_SECONDS) for process in self._processes.values()))
        self._files.close()

    async def _start(self, name: str, build: Path) -> None:
        address = f"http://127.0.0.1:{free_port()}" if name in _OVER_HTTP else None
        process = Process(
            f"{build.name} {name}",
            _command(name, build, address),
            environment=self._environment(build),
            log=self._log(build.name),
            ready=None if address is None else lambda: _answers(address),
        )
        await process.start()
        self._processes[name], self.build_of[name] = process, build.name
        if address is not None:
            setattr(self, name, address)

    def _environment(self, build: Path) -> dict[str, str]:
        # Safe path: python -m would look into the folder that the tests run in first, and find the code there.
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(build), "PYTHONSAFEPATH": "1", **self._variables}

    def _log(self, build: str) -> TextIO:
        if build not in self._logs:
            file = (self.folder / f"{build}.log").open("a", encoding="utf-8")
            self._logs[build] = self._files.enter_context(file)
        return self._logs[build]


def _command(name: str, build: Path, address: str | None) -> list[str]:
    if address is None:
        return [sys.executable, "-m", "shared.cli", "worker", "--function", name]
    port = address.rpartition(":")[2]
    source = ["--target", name, "--source", str(build / "main.py"), "--host", "127.0.0.1", "--port", port]
    return [sys.executable, "-m", "functions_framework", *source]


async def _answers(address: str) -> None:
    async with httpx.AsyncClient(timeout=2) as client:
        while True:
            try:
                await client.get(f"{address}/robots.txt")
            except httpx.HTTPError:
                await asyncio.sleep(0.02)
            else:
                return
