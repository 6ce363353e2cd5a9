"""Backups of the state: made in one snapshot, in one file that knows what it holds, restored whole or not at all."""

from shared.state.backups.archive import Manifest, check
from shared.state.backups.dumping import back_up
from shared.state.backups.restoring import Restored, readable, restore

__all__ = ["Manifest", "Restored", "back_up", "check", "readable", "restore"]
