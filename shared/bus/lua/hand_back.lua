-- KEYS[1] stream, KEYS[2] held back; ARGV group, owner of what is held back, consumer, "stays" or "leaves", ids that its handlers have.
-- What no handler has got can be delivered to anyone at once, and that delivery is not counted. A consumer that leaves also gives
-- back what its handlers have; those deliveries are counted. → how many
local started = {}
for i = 5, #ARGV do
  started[ARGV[i]] = true
end
local leaves, back = ARGV[4] == 'leaves', 0
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[3])) do
  local id, count = pending[1], pending[4]
  if leaves or not started[id] then
    redis.call('ZADD', KEYS[2], math.floor(now * 1000), id)
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', started[id] and count or count - 1, 'JUSTID')
    back = back + 1
  end
end
-- Deleting a consumer that has something pending would lose it.
if leaves and #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[3]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[3])
end
return back
