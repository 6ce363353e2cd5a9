-- KEYS[1] stream; ARGV group → {messages in the stream, milliseconds since the oldest that the group has not settled was published}
local first = redis.call('XPENDING', KEYS[1], ARGV[1])[2]
if not first then
  local last = '0-0'
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    for i = 1, #info, 2 do
      if info[i] == 'name' and info[i + 1] ~= ARGV[1] then
        break
      elseif info[i] == 'last-delivered-id' then
        last = info[i + 1]
      end
    end
  end
  local entry = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
  first = entry and entry[1]
end
local oldest = first and math.max(0, math.floor(now * 1000) - tonumber(first:match('^%d+'))) or 0
return {redis.call('XLEN', KEYS[1]), oldest}
