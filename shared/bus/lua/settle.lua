-- KEYS[1] stream; ARGV group, ids of messages that are settled in it. What no other group can want is deleted.
redis.call('XACK', KEYS[1], unpack(ARGV))
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if not groups.err and #groups == 1 then
  redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
end
return 1
