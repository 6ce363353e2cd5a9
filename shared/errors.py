"""Every error that the platform raises on purpose.

    AgentTeamError
    ├── Permanent                    trying again cannot help: acknowledged, logged, counted, never retried
    │   ├── ConfigurationError       the environment, a file of the project or the machine is not as it must be
    │   ├── InputError               a person typed or sent something that cannot be used
    │   ├── DefinitionError          a workflow definition is wrong; names file and line
    │   ├── NotFound                 no such workflow, step, function, …
    │   ├── Conflict                 the same key was used for something else
    │   ├── EnvelopeRejected         a message that may not be trusted or understood; carries a `reason` for the counter
    │   ├── BudgetExceeded           the workflow's steps, tokens, money or time are used up
    │   ├── ModelRefused             the model will not answer this: key, permission, safety, …
    │   │   └── ModelUnknown         there is no such model (any more): another one may serve
    │   └── OutputInvalid            an answer does not fit the schema that was asked for
    └── Transient                    trying again later may help; may say when
        ├── RateLimited              a quota is used up for now
        ├── CircuitOpen              a breaker refuses calls for now
        ├── BusUnavailable           the message bus
        ├── StoreUnavailable         the database or the guards' store
        └── ModelUnavailable         the model: connection, timeout, 429, 5xx

An exception that is none of these is unknown and counts as transient: dead-lettering bounds it.
A message says what was wrong, where, and what to do. It never holds a payload or a secret.
"""


class AgentTeamError(Exception):
    """Base of all errors raised on purpose."""

    @property
    def code(self) -> str:
        """The name that is logged, counted and stored: the class name."""
        return type(self).__name__


class Permanent(AgentTeamError):
    """Trying again cannot help."""


class ConfigurationError(Permanent):
    """The environment, a file of the project or the machine is not as it must be."""


class InputError(Permanent):
    """A person typed or sent something that cannot be used."""


class DefinitionError(Permanent):
    """A workflow definition is wrong. The message starts with `file:line`."""


class NotFound(Permanent):
    """No such workflow, step or function."""


class Conflict(Permanent):
    """The same key was used before for something else."""


class EnvelopeRejected(Permanent):
    """A message that may not be trusted or understood.

    `reason` is one of a small, fixed set of words and labels the counter `envelope.rejected`:
    token, size, key, signature, schema, type, expired, future.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BudgetExceeded(Permanent):
    """The workflow's steps, tokens, money or time are used up."""


class ModelRefused(Permanent):
    """The model will not answer: bad key, no permission, unsafe, unknown model."""


class ModelUnknown(ModelRefused):
    """There is no such model, or it was retired. Another one may serve; a refused key would be refused there too."""


class OutputInvalid(Permanent):
    """An answer does not fit the schema that was asked for."""


class Transient(AgentTeamError):
    """Trying again later may help. `retry_after_seconds` is None when nobody knows when."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Transient):
    """A quota is used up for now."""


class CircuitOpen(Transient):
    """A circuit breaker refuses calls for now."""


class BusUnavailable(Transient):
    """The message bus cannot be reached or refuses work."""


class StoreUnavailable(Transient):
    """The database, or the store behind the guards, cannot be reached or refuses work."""


class ModelUnavailable(Transient):
    """The model did not answer: connection, timeout, 429, 5xx."""
