-- KEYS[1] stream; ARGV group. The group gets everything that is in the stream, and it stays what it is when it is there.
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, info in ipairs(groups) do
  for i = 1, #info, 2 do
    if info[i] == 'name' and info[i + 1] == ARGV[1] then
      return 1 -- a full server makes no groups, and must be emptied all the same
    end
  end
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
return 1
