"""What the platform knows of its workflows: PostgreSQL, reached by one statement or one request per call."""

from shared.state.base import Caller, Command, Event
from shared.state.documents import Document, document
from shared.state.keys import SCOPES, ApiKeys, Scope
from shared.state.letters import DeadLetters, Letter, LetterFilter, LetterState
from shared.state.opening import open_store, over_http
from shared.state.store import WorkflowStore

__all__ = [
    "SCOPES",
    "ApiKeys",
    "Caller",
    "Command",
    "DeadLetters",
    "Document",
    "Event",
    "Letter",
    "LetterFilter",
    "LetterState",
    "Scope",
    "WorkflowStore",
    "document",
    "open_store",
    "over_http",
]
