-- KEYS[1] stream; ARGV group. The group gets everything that is in the stream, and it stays what it is when it is there.
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err and not made.err:find('BUSYGROUP') then
  return redis.error_reply(made.err)
end
return 1
