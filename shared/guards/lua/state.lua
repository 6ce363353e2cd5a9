-- KEYS[1] circuit → its state as of now: a pause that is over leaves it half-open, though nobody has called yet
local state, ends = unpack(redis.call('HMGET', KEYS[1], 'state', 'ends'))
if state == 'OPEN' and now >= tonumber(ends) - 1e-6 then
  return 'HALF_OPEN'
end
return state or 'CLOSED'
