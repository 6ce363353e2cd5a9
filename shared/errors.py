"""Every error that the platform raises on purpose.

    AgentTeamError
    ├── Permanent                    trying again cannot help: acknowledged, logged, counted, never retried
    │   ├── ConfigurationError       the environment, a file of the project or the machine is not as it must be
    │   ├── InputError               a person typed or sent something that cannot be used
    │   ├── DefinitionError          a workflow definition is wrong; names file and line
    │   ├── NotFound                 no such workflow, step, function, …
    │   ├── Conflict                 the same key was used for something else, or what is asked for was settled before
    │   ├── EnvelopeRejected         a message that may not be trusted or understood; carries a `reason` for the counter
    │   ├── TokenRefused             an identity token that proves nothing; the message goes on from "the token"
    │   ├── BudgetExceeded           the workflow's steps, tokens, money or time are used up
    │   ├── Cancelled                the workflow ended while this was at work for it
    │   ├── ModelRefused             the model will not answer this: key, permission, …
    │   │   ├── ContentBlocked       what was asked or answered is not let through by the provider's safety rules
    │   │   ├── ModelUnknown         there is no such model (any more): another one may serve
    │   │   └── PromptTooLarge       the prompt is larger than what the model can read
    │   ├── OutputDamaged            a stored output is not what was stored
    │   └── OutputInvalid            an answer is not JSON, or does not fit the schema that was asked for
    │       ├── OutputEmpty          there is no answer in the response
    │       └── OutputTruncated      the answer was cut off at its limit of tokens
    └── Transient                    trying again later may help; may say when
        ├── RateLimited              a quota is used up for now
        │   └── ShareUsed            this instance's share of it, which is all that it may take while the guards' store is down
        ├── CircuitOpen              a breaker refuses calls for now
        ├── BusUnavailable           the message bus
        ├── StoreUnavailable         the database or the guards' store
        ├── HostUnavailable          a host that somebody named: no such name, no connection, no answer, or not now
        ├── GatewayUnavailable       the gateway, as the command line asks it over HTTP
        └── ModelUnavailable         the model: 5xx, no connection
            └── OutcomeUnknown       no answer came: the call may have been carried out, and charged

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
    """The same key was used before for something else, or what is asked for was settled before."""


class EnvelopeRejected(Permanent):
    """A message that may not be trusted or understood.

    `reason` is one of a small, fixed set of words and labels the counter `envelope.rejected`:
    token, size, key, signature, schema, type, expired, future.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TokenRefused(Permanent):
    """An identity token that proves nothing. The message goes on from "the token": `is expired, …`."""


class BudgetExceeded(Permanent):
    """The workflow's steps, tokens, money or time are used up."""


class Cancelled(Permanent):
    """The workflow ended while this was at work for it."""


class ModelRefused(Permanent):
    """The model will not answer: bad key, no permission, unsafe, unknown model."""


class ContentBlocked(ModelRefused):
    """What was asked or answered is not let through by the provider's safety rules."""


class ModelUnknown(ModelRefused):
    """There is no such model, or it was retired. Another one may serve; a refused key would be refused there too."""


class PromptTooLarge(ModelRefused):
    """The prompt is larger than what the model can read; it was not asked."""


class OutputDamaged(Permanent):
    """A stored output is not what was stored."""


class OutputInvalid(Permanent):
    """An answer is not JSON, or does not fit the schema that was asked for."""


class OutputEmpty(OutputInvalid):
    """There is no answer in the response."""


class OutputTruncated(OutputInvalid):
    """The answer was cut off at its limit of tokens."""


class Transient(AgentTeamError):
    """Trying again later may help. `retry_after_seconds` is None when nobody knows when."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Transient):
    """A quota is used up for now."""


class ShareUsed(RateLimited):
    """While the guards' store is down an instance takes its share of a quota: that is used up for now, the quota perhaps not."""


class CircuitOpen(Transient):
    """A circuit breaker refuses calls for now."""


class BusUnavailable(Transient):
    """The message bus cannot be reached or refuses work."""


class StoreUnavailable(Transient):
    """The database, or the store behind the guards, cannot be reached or refuses work."""


class HostUnavailable(Transient):
    """A host that somebody named does not answer, or says that it cannot now."""


class GatewayUnavailable(Transient):
    """The gateway, as the command line asks it over HTTP, cannot be reached, does not answer, or refuses work for now."""


class ModelUnavailable(Transient):
    """The model did not answer: 5xx, no connection."""


class OutcomeUnknown(ModelUnavailable):
    """No answer came: a timeout, or a connection that dropped. The call may have been carried out, and charged."""
