-- KEYS[1] record; ARGV token → 1, or 0 when the token does not hold an uncompleted claim
local token, lease_until, done = unpack(redis.call('HMGET', KEYS[1], 'token', 'lease_until', 'done'))
if token ~= ARGV[1] or done or tonumber(lease_until) <= now then
  return 0
end
redis.call('DEL', KEYS[1])
return 1
