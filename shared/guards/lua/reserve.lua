-- KEYS[1] bucket; ARGV rate, burst, cost, longest wait or '' → {1 or 0 for taken or refused, seconds to wait}
local full_at, blocked_until = unpack(redis.call('HMGET', KEYS[1], 'full_at', 'blocked_until'))
local rate, burst, cost, max_wait = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
blocked_until = tonumber(blocked_until or 0)
local filling = burst / rate
full_at = math.max(tonumber(full_at or 0), now) + cost / rate
if blocked_until > now then
  full_at = math.max(full_at, blocked_until + filling)
end
local wait = full_at - filling - now
if wait <= 1e-6 then
  wait = 0
end
if max_wait and wait > max_wait then
  return {0, string.format('%.17g', wait)}
end
redis.call('HSET', KEYS[1], 'full_at', string.format('%.17g', full_at))
-- A full bucket is as good as none. It is kept a little longer, so that a steady trickle does not make and delete it each time.
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', (math.max(full_at, blocked_until) - now) * 1000 + 1000))
return {1, string.format('%.17g', wait)}
