-- KEYS[1] bucket; ARGV seconds
local full_at, blocked_until = unpack(redis.call('HMGET', KEYS[1], 'full_at', 'blocked_until'))
local ends = math.max(tonumber(blocked_until or 0), now + tonumber(ARGV[1]))
redis.call('HSET', KEYS[1], 'blocked_until', string.format('%.17g', ends))
local known_for = (math.max(tonumber(full_at or 0), ends, now) - now) * 1000 + 1000
-- The bucket's windows may matter for longer.
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(known_for, redis.call('PTTL', KEYS[1]))))
