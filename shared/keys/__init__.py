"""Signing keys that rotate while the platform runs: where they are kept, and the ring that keeps up with them."""

from shared.keys.base import Key, KeySet, KeyStore, StaticKeys, ring_of
from shared.keys.file import FileKeyStore
from shared.keys.live import LiveRing

__all__ = ["FileKeyStore", "Key", "KeySet", "KeyStore", "LiveRing", "StaticKeys", "ring_of"]
