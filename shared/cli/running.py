"""One workflow on the embedded platform, from start to result, with its progress shown."""

import asyncio
from typing import Any

from shared.cli.loop import Stopped, run_async
from shared.cli.outcome import reason, summary
from shared.cli.output import counted, describe_model, listed, say, say_error, write_json, write_result
from shared.cli.screen import open_screen
from shared.cli.session import FAILURE, SUCCESS
from shared.errors import AgentTeamError
from shared.local import Platform, open_platform
from shared.local.home import LOG_FILE
from shared.messages import WorkflowRequested
from shared.runtime import Runtime
from shared.workflows import Definition


class LocalRun:
    """Runs one workflow, and what earlier processes left unfinished, to their ends."""

    def __init__(self, live: Runtime, definition: Definition, given: dict[str, Any], *, as_json: bool, verbose: bool) -> None:
        self._live = live
        self._definition = definition
        self._given = given
        self._as_json = as_json
        self._verbose = verbose
        self._unfinished: list[str] = []

    def execute(self) -> int:
        """Do it, blocking, and return the exit code. Raises Stopped when a signal ended it, AgentTeamError when it cannot start."""
        try:
            return run_async(self._execute())
        except Stopped:
            self._tell_what_is_left()
            raise

    async def _execute(self) -> int:
        async with open_platform(self._live.settings, runtime=self._live, schedules=False) as platform:
            left_over = platform.unfinished
            self._unfinished = list(left_over)
            if left_over:
                say(f"resuming {counted(len(left_over), 'unfinished workflow')}: {listed(left_over)}")
            workflow = await platform.submit(WorkflowRequested(workflow=self._definition.name, input=self._given))
            self._unfinished.insert(0, workflow)
            say(f"{self._definition.name} v{self._definition.version} · {workflow} · model: {describe_model(self._live.settings)}")
            try:
                code = await self._follow(platform, workflow)
                for other in left_over:
                    await self._wait_for(platform, other)
            except AgentTeamError as error:
                say_error(str(error))
                self._tell_what_is_left()
                return FAILURE
            except asyncio.CancelledError:
                say("ending, which may take some seconds; Ctrl-C again ends at once", style="dim")
                raise
            return code

    async def _follow(self, platform: Platform, workflow: str) -> int:
        async with open_screen(self._live.clock, live=not self._verbose, workflow=workflow) as screen:
            async for entry in platform.follow(workflow):
                screen.show(entry)
        document = await self._live.store.get(workflow)
        self._unfinished.remove(workflow)
        succeeded = document["status"] == "SUCCESS"
        say(summary(document), style="green" if succeeded else "red")
        if not succeeded:
            say_error(
                f"{reason(document)}; more is in {self._live.settings.agent_team_home / LOG_FILE}, and every step with --json"
            )
        if self._as_json:
            write_json(await self._live.outputs.whole(document))
        elif succeeded:
            write_result(await self._live.outputs.whole(document["output"]))
        return SUCCESS if succeeded else FAILURE

    async def _wait_for(self, platform: Platform, workflow: str) -> None:
        document = await self._live.store.get(workflow)
        if document["finished_at"] is None:
            say(f"waiting for {workflow}, resumed from an earlier run; Ctrl-C leaves it for the next start")
            async for _ in platform.follow(workflow, after=document["seq"]):
                pass
            document = await self._live.store.get(workflow)
        self._unfinished.remove(workflow)
        say(f"{workflow}: {summary(document)}")

    def _tell_what_is_left(self) -> None:
        if self._unfinished:
            goes = "goes" if len(self._unfinished) == 1 else "go"
            say(f"{listed(self._unfinished)} {goes} on with the next `agent-team run` or `agent-team serve` in this folder")
