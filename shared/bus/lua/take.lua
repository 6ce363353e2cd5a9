-- KEYS[1] stream, KEYS[2] held back, KEYS[3] when each consumer last looked; ARGV group, owner of what is held back, consumer, how many
-- to take, ack deadline in ms, least and longest backoff in ms, attempts after which a message is dead (0: never), ms after which a
-- silent consumer is forgotten, ms after which it is taken for dead.
-- First holds back what is overdue, whoever has it, and all that the dead have; then takes what is due.
-- → {now, ms until the next is due or -1, how many were overdue, {id, attempts so far, fields or false if it was trimmed}…}
local stream, held, group, holder, consumer = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local most, deadline, least, longest = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local attempts, forgotten, silence = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local milliseconds = math.floor(now * 1000)
redis.pcall('ZADD', KEYS[3], milliseconds, consumer) -- a full server takes no more, and must be emptied all the same
redis.call('PEXPIRE', KEYS[3], forgotten)

local function named(list)
  local fields = {}
  for i = 1, #list, 2 do
    fields[list[i]] = list[i + 1]
  end
  return fields
end

local overdue = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local one = named(info)
  if one.name ~= holder and one.pending > 0 then
    local looked = tonumber(redis.call('ZSCORE', KEYS[3], one.name) or milliseconds)
    local idle = milliseconds - looked > silence and 0 or deadline
    for _, pending in ipairs(redis.call('XPENDING', stream, group, 'IDLE', idle, '-', '+', 100, one.name)) do
      local pause = math.min(least * 2 ^ math.min(pending[4] - 1, 60), longest)
      redis.call('ZADD', held, milliseconds + math.floor(pause), pending[1])
      redis.call('XCLAIM', stream, group, holder, 0, pending[1], 'RETRYCOUNT', pending[4], 'JUSTID')
      overdue = overdue + 1
    end
  elseif one.name ~= holder and one.idle > forgotten then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, one.name)
    redis.call('ZREM', KEYS[3], one.name)
  end
end

local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', held, '-inf', milliseconds, 'LIMIT', 0, most)) do
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if pending then -- or a late handler has settled it
    local entry, count = redis.call('XRANGE', stream, id, id)[1], pending[4]
    if entry then
      local spent = attempts > 0 and count >= attempts
      redis.call('XCLAIM', stream, group, consumer, 0, id, 'RETRYCOUNT', spent and count or count + 1, 'JUSTID')
      taken[#taken + 1] = {id, count, entry[2]}
    else
      redis.call('XACK', stream, group, id)
      taken[#taken + 1] = {id, count, false}
    end
  end
  redis.call('ZREM', held, id)
end

local first = redis.call('ZRANGE', held, 0, 0, 'WITHSCORES')
local due = first[2] and math.max(0, tonumber(first[2]) - milliseconds) or -1
return {milliseconds, due, overdue, taken}
