"""Envelopes: what they say, how they are signed, how they are trusted."""

from shared.messages.envelope import MAX_CLOCK_SKEW, Envelope, decode, open_envelope, seal
from shared.messages.payloads import (
    TYPE_OF,
    TYPES,
    Budget,
    ErrorInfo,
    Payload,
    Remaining,
    SpawnedStep,
    StepCompleted,
    StepDeferred,
    StepDispatched,
    StepFailed,
    Usage,
    WorkflowCancelled,
    WorkflowFinished,
    WorkflowRequested,
)
from shared.messages.signing import CONTENT_TYPE, MIN_SECRET_LENGTH, KeyRing, KeyState, Secret

__all__ = [
    "CONTENT_TYPE",
    "MAX_CLOCK_SKEW",
    "MIN_SECRET_LENGTH",
    "TYPES",
    "TYPE_OF",
    "Budget",
    "Envelope",
    "ErrorInfo",
    "KeyRing",
    "KeyState",
    "Payload",
    "Remaining",
    "Secret",
    "SpawnedStep",
    "StepCompleted",
    "StepDeferred",
    "StepDispatched",
    "StepFailed",
    "Usage",
    "WorkflowCancelled",
    "WorkflowFinished",
    "WorkflowRequested",
    "decode",
    "open_envelope",
    "seal",
]
