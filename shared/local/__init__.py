"""The whole platform in one process."""

from shared.local.platform import Platform, open_platform

__all__ = ["Platform", "open_platform"]
