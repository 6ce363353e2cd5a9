"""An agent at work on one step, on a stage of its own: what it answers to its dispatch."""

from collections.abc import Mapping
from typing import Any, TypeVar

from shared.ai import Model, Prompt, Tool
from shared.bus import Message
from shared.messages import Payload
from shared.runtime import Result, Run, Task, Team
from shared.runtime.cancellation import Cancellations
from shared.runtime.progress import Progress
from shared.runtime.team import AgentWork, ModelSettings, answer_prompt
from tests.support.doubles import WORKFLOW, PaidModel, ScriptedModel, Stage

PROMPT = Prompt(
    3,
    "fast",
    0.7,
    {"type": "object"},
    "Brief: {{ input.brief }}",
    "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
)
Answer = TypeVar("Answer", bound=Payload)


class Desk:
    """The writer at work, on a stage of its own."""

    def __init__(
        self,
        run: Run = answer_prompt,
        *,
        model: Model | None = None,
        prompt: Prompt | None = PROMPT,
        max_bytes: int = 524_288,
        tools: Mapping[str, Tool] | None = None,
    ) -> None:
        self.stage = Stage()
        self.model = ScriptedModel({"text": "the draft"}) if model is None else model
        guards = self.stage.for_agents()
        self.cancellations: Cancellations = guards["cancellations"]
        self.progress: Progress = guards["progress"]
        self.work = AgentWork(
            "writer",
            run,
            prompt=prompt,
            model=PaidModel(self.model),
            settings=ModelSettings(temperature=0.2, max_tokens=4096),
            sender=self.stage.sender("writer", max_bytes=max_bytes),
            clock=self.stage.clock,
            longest_seconds=300,
            tools={} if tools is None else tools,
            **guards,
        )

    async def reply(self, kind: type[Answer], **changes: Any) -> Answer:
        """What the agent answers to a dispatch of the step, with `changes`."""
        (message,) = await self.messages(**changes)
        envelope = self.stage.opened(message)
        assert message.topic == "workflow-events"
        assert (envelope.subject, envelope.correlationid) == (f"{WORKFLOW}/draft", WORKFLOW)
        assert isinstance(envelope.data, kind), envelope.data
        return envelope.data

    async def messages(self, **changes: Any) -> list[Message]:
        dispatched = self.stage.dispatched(**changes)
        opened = self.stage.opened(Message(dispatched.topic, dispatched.data, dispatched.attributes))
        return list(await self.work(opened))

    async def reply_id(self, **changes: Any) -> str:
        (message,) = await self.messages(**changes)
        envelope = self.stage.opened(message)
        assert envelope.causationid is not None
        return envelope.id


def raising(error: BaseException) -> Run:
    async def run(task: Task, team: Team) -> Result:
        raise error

    return run


def returning(result: Any) -> Run:
    async def run(task: Task, team: Team) -> Result:
        return result  # type: ignore[no-any-return]

    return run
