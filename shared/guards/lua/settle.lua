-- KEYS[1] bucket, KEYS[2] mark of this correction; ARGV window, cost, age in seconds, life of the mark in milliseconds
-- → 1, or 0 when there is nothing to correct
local field, cost, used_at = 'window:' .. ARGV[1], tonumber(ARGV[2]), now - tonumber(ARGV[3])
local stored = redis.call('HGET', KEYS[1], field)
if not stored then
  return 0
end
local begins, ends, used = string.match(stored, '(%S+) (%S+) (%S+)')
if cost < 0 and used_at < tonumber(begins) - 1e-6 then
  return 0
end
-- Taken off twice, when the answer to the first try was lost, it would be granted twice.
if cost < 0 and not redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[4]) then
  return 0
end
redis.call('HSET', KEYS[1], field, string.format('%s %s %.17g', begins, ends, math.max(0, tonumber(used) + cost)))
return 1
