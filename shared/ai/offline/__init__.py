"""The offline model: extracts instead of writing, the same answer every time, no network, no cost."""

from shared.ai.offline.model import NAME, OfflineModel
from shared.ai.offline.report import NOTICE

__all__ = ["NAME", "NOTICE", "OfflineModel"]
