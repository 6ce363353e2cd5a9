-- KEYS[1] stream, KEYS[2] held back; ARGV group, owner of what is held back; then of each failed delivery id, attempt, pause in ms.
-- A delivery that is not the message's latest says nothing. → milliseconds until the first message held back is due
local milliseconds = math.floor(now * 1000)
for i = 3, #ARGV, 3 do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if pending and pending[4] == tonumber(ARGV[i + 1]) then
    -- The set first: a full server refuses that one, and then nothing has changed.
    redis.call('ZADD', KEYS[2], milliseconds + tonumber(ARGV[i + 2]), ARGV[i])
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'RETRYCOUNT', pending[4], 'JUSTID')
  end
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return first[2] and math.max(0, tonumber(first[2]) - milliseconds) or -1
