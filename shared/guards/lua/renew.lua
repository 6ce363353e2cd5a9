-- KEYS[1] record; ARGV token, lease, the lease in milliseconds → 1, or 0 when the token does not hold an uncompleted claim
local token, lease_until, done = unpack(redis.call('HMGET', KEYS[1], 'token', 'lease_until', 'done'))
if token ~= ARGV[1] or done or tonumber(lease_until) <= now then
  return 0
end
redis.call('HSET', KEYS[1], 'lease_until', string.format('%.17g', now + tonumber(ARGV[2])))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
