-- KEYS[1] stream; ARGV retention in ms. Drops what is older, and what every group has settled. → how many
local function named(list)
  local fields = {}
  for i = 1, #list, 2 do
    fields[list[i]] = list[i + 1]
  end
  return fields
end

local function earlier(one, other)
  local a, b = one:match('^(%d+)'), other:match('^(%d+)')
  if #a ~= #b then
    return #a < #b
  elseif a ~= b then
    return a < b
  end
  return tonumber(one:match('%-(%d+)$')) < tonumber(other:match('%-(%d+)$'))
end

local least
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = named(info)
  local unsettled = group.pending > 0 and redis.call('XPENDING', KEYS[1], group.name)[2] or group['last-delivered-id']
  if not least or earlier(unsettled, least) then
    least = unsettled
  end
end
local expired = string.format('%d-0', math.floor(now * 1000) - tonumber(ARGV[1]))
if not least or earlier(least, expired) then
  least = expired
end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', least, 'LIMIT', 0)
