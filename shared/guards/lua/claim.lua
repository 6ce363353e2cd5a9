-- KEYS[1] record; ARGV token, lease, life of the record in milliseconds
-- → {'new'} | {'in_flight', seconds} | {'done', result or nil}
local token, lease_until, done, result = unpack(redis.call('HMGET', KEYS[1], 'token', 'lease_until', 'done', 'result'))
if done then
  return {'done', result}
end
-- The claimant's own token: the answer to its first try was lost on the way.
if token and token ~= ARGV[1] and tonumber(lease_until) > now then
  return {'in_flight', tostring(tonumber(lease_until) - now)}
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'lease_until', string.format('%.17g', now + tonumber(ARGV[2])))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'new'}
