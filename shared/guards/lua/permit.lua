-- KEYS[1] circuit; ARGV pause, lease of a probe, life of the record in milliseconds
-- → {state} when a call may be made, {state, seconds after which to ask again} when not
local state, ends = unpack(redis.call('HMGET', KEYS[1], 'state', 'ends'))
if not state or state == 'CLOSED' then
  return {'CLOSED'}
end
local left = tonumber(ends) - now
if left > 1e-6 then
  return {state, string.format('%.17g', math.min(left, tonumber(ARGV[1])))}
end
redis.call('HSET', KEYS[1], 'state', 'HALF_OPEN', 'ends', string.format('%.17g', now + tonumber(ARGV[2])))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'HALF_OPEN'}
