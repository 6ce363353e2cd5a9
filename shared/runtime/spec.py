"""`function.yaml`: what a function is deployed with. Read by the local platform, Terraform and the tests."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.bus import Subscription
from shared.errors import ConfigurationError
from shared.messages.payloads import Name
from shared.runtime.letters import DEAD_LETTERS

FUNCTIONS = Path(__file__).parents[2] / "functions"

_Topic = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{2,200}$")]
_Published = Annotated[str, Field(pattern=r"^([a-z][a-z0-9-]{2,200}|agent-\*)$")]

_LONGEST_DELIVERY_SECONDS = 570


class Trigger(BaseModel):
    """What sets a function off: exactly one of a topic, a schedule (cron, UTC) or HTTP requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: _Topic | None = None
    signed: bool = True
    """Whether the topic carries envelopes; others carry plain messages from publishers that IAM lets in."""
    schedule: str | None = None
    http: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> "Trigger":
        if (self.topic is not None) + (self.schedule is not None) + self.http != 1:
            raise ValueError("a trigger is one of topic, schedule or http")
        return self


class FunctionSpec(BaseModel):
    """One function. Its folder, its module `main` and the callable in it bear its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    description: str
    triggers: tuple[Trigger, ...] = Field(min_length=1)
    memory: Annotated[str, Field(pattern=r"^\d+(Mi|Gi)$")] = "512Mi"
    timeout_seconds: float = Field(default=300, gt=0, le=3600)
    """How long one request may take; of a delivery at most 570 s, since the bus waits 30 s longer, and 600 s at most."""
    concurrency: int = Field(default=80, ge=1, le=1000)
    max_attempts: int = Field(default=10, ge=5, le=100)
    min_backoff_seconds: float = Field(default=2, ge=0, le=600)
    max_backoff_seconds: float = Field(default=600, ge=0, le=600)
    publishes: tuple[_Published, ...] = ()
    """Topics that its account may publish to; `agent-*` are those of all agents."""
    secrets: tuple[str, ...] = ()
    input: dict[str, Any] | None = None
    """Of an agent whose code makes something else of its input than its prompt takes: what a step gives it, as JSON Schema."""

    @model_validator(mode="after")
    def _ends_before_its_delivery(self) -> "FunctionSpec":
        if self.timeout_seconds > _LONGEST_DELIVERY_SECONDS and any(trigger.topic for trigger in self.triggers):
            raise ValueError(f"timeout_seconds is at most {_LONGEST_DELIVERY_SECONDS} where a trigger is a topic")
        return self

    @property
    def is_agent(self) -> bool:
        """Whether this is a member of the team: it listens on the topic that steps of its name are sent to."""
        return any(trigger.topic == f"agent-{self.name}" for trigger in self.triggers)

    @property
    def ack_deadline_seconds(self) -> float:
        return self.timeout_seconds + 30

    def subscriptions(self) -> tuple[Subscription, ...]:
        """One per topic, called `<topic>.<function>`."""
        return tuple(
            Subscription(
                name=f"{trigger.topic}.{self.name}",
                topic=trigger.topic,
                ack_deadline_seconds=self.ack_deadline_seconds,
                max_attempts=self.max_attempts,
                min_backoff_seconds=self.min_backoff_seconds,
                max_backoff_seconds=self.max_backoff_seconds,
                # A dead letter that cannot be recorded has nowhere else to go: it is kept and tried again.
                dead_letter_topic=None if trigger.topic == DEAD_LETTERS else DEAD_LETTERS,
                concurrency=self.concurrency,
            )
            for trigger in self.triggers
            if trigger.topic is not None
        )


def load_function(folder: Path) -> FunctionSpec:
    """The spec in `folder`. Raises ConfigurationError that names the file and every mistake in it."""
    import yaml  # 15 ms that a function in production, which is told its name, need not pay

    file = folder / "function.yaml"
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        spec = FunctionSpec.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = type(error).__name__
        raise ConfigurationError(f"{file}: cannot be read ({reason}); see the other functions for what it holds") from error
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors())
        raise ConfigurationError(f"{file}: {mistakes}") from error
    if spec.name != folder.name:
        raise ConfigurationError(f"{file}: name is {spec.name}, but the folder is {folder.name}; give both the same name")
    return spec


def load_functions(folder: Path = FUNCTIONS) -> dict[str, FunctionSpec]:
    """Every function of the project by name."""
    return {file.parent.name: load_function(file.parent) for file in sorted(folder.glob("*/function.yaml"))}
