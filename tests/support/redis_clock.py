"""Redis on a clock that the tests move: scripts read it from a key, and keys age as it moves."""

import asyncio
from collections.abc import Sequence
from typing import Any

from shared.clock import Clock
from shared.guards.redis import LUA
from shared.redis.store import Command, RedisStore

_CLOCK_KEY = "clock"
_NOW_LUA = f"local now = tonumber(redis.call('GET', '{_CLOCK_KEY}') or 0)\n"
_AGE_LUA = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= tonumber(ARGV[2]) then
    redis.call('DEL', key)
  elseif left >= 0 then
    redis.call('PEXPIRE', key, left - tonumber(ARGV[2]))
  end
end
redis.call('SET', KEYS[1], ARGV[1])
"""


class ClockedStore(RedisStore):
    """Before each call the server is told how far the clock has moved. What passes of real time meanwhile is next to nothing."""

    def __init__(self, url: str, clock: Clock) -> None:
        super().__init__(url, LUA, now_lua=_NOW_LUA)
        self._clock = clock
        self._told = 0.0
        self._telling = asyncio.Lock()

    async def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        async with self._telling:
            now = self._clock.monotonic()
            if now != self._told:
                words = ("EVAL", _AGE_LUA, 1, _CLOCK_KEY, repr(now), int((now - self._told) * 1000))
                await super().execute_all([Command(words, words)])
                self._told = now
        return await super().execute_all(commands)
