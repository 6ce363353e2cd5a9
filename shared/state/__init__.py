"""What the platform knows of its workflows: PostgreSQL, reached by one statement or one request per call."""

from shared.state.base import Caller, Command, Event
from shared.state.opening import open_store, over_http
from shared.state.store import WorkflowStore

__all__ = ["Caller", "Command", "Event", "WorkflowStore", "open_store", "over_http"]
