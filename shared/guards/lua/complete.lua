-- KEYS[1] record; ARGV token, and the result where there is one → 1, or 0 when the token does not hold the claim
local token, lease_until, done = unpack(redis.call('HMGET', KEYS[1], 'token', 'lease_until', 'done'))
if token ~= ARGV[1] or (not done and tonumber(lease_until) <= now) then
  return 0
end
if ARGV[2] then
  redis.call('HSET', KEYS[1], 'done', 1, 'result', ARGV[2])
else
  redis.call('HSET', KEYS[1], 'done', 1)
  redis.call('HDEL', KEYS[1], 'result')
end
return 1
