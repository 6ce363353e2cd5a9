-- KEYS[1] bucket; ARGV rate, burst, cost, longest wait or '', seconds to keep a window that is over,
-- then for each window: name, limit, cost, seconds until it ends, length → {1 or 0 for taken or refused, seconds to wait}
local rate, burst, cost, max_wait = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local fields, windows = {'full_at', 'blocked_until'}, {}
for i = 6, #ARGV, 5 do
  windows[#windows + 1] = {
    limit = tonumber(ARGV[i + 1]), cost = tonumber(ARGV[i + 2]), ends = now + tonumber(ARGV[i + 3]), length = tonumber(ARGV[i + 4])
  }
  fields[#fields + 1] = 'window:' .. ARGV[i]
end
local stored = redis.call('HMGET', KEYS[1], unpack(fields))
for i, window in ipairs(windows) do
  if stored[i + 2] then
    local begins, ends, used = string.match(stored[i + 2], '(%S+) (%S+) (%S+)')
    window.record = {begins = tonumber(begins), ends = tonumber(ends), used = tonumber(used)}
  end
end

-- The first moment from `at` on at which the window holds its cost, and its record with the cost taken then.
local function place(window, at)
  local record, ends, length = window.record, window.ends, window.length
  if record and at < record.ends then
    if record.used + window.cost <= window.limit then
      return math.max(at, record.begins), {begins = record.begins, ends = record.ends, used = record.used + window.cost}
    end
    at = record.ends
  end
  if ends <= at then
    ends = ends + (math.floor((at - ends) / length) + 1) * length
  end
  -- Not a window between two, but a clock that is behind, or a day that has 25 hours.
  if record and ends - record.ends < length / 2 then
    ends = ends + length
  end
  return at, {begins = math.min(ends - length, at), ends = ends, used = window.cost}
end

local blocked_until = tonumber(stored[2] or 0)
local filling = burst / rate
local full_at = math.max(tonumber(stored[1] or 0), now) + cost / rate
if blocked_until > now then
  full_at = math.max(full_at, blocked_until + filling)
end
local there_at = math.max(now, full_at - filling)
local at, earlier = there_at, nil
repeat -- a wait for one window may end in a later one of another
  earlier = at
  for _, window in ipairs(windows) do
    at, window.placed = place(window, at)
  end
until at == earlier
if at > there_at then
  full_at = math.max(full_at, at + cost / rate)
end
local wait = at - now
if wait <= 1e-6 then
  wait = 0
end
if max_wait and wait > max_wait then
  return {0, string.format('%.17g', wait)}
end
-- A full bucket is as good as none. It is kept a little longer, so that a steady trickle does not make and delete it each time.
local known_for = math.max(full_at, blocked_until) - now + 1
local changes = {'full_at', string.format('%.17g', full_at)}
for i, window in ipairs(windows) do
  local record = window.placed
  changes[#changes + 1] = fields[i + 2]
  changes[#changes + 1] = string.format('%.17g %.17g %.17g', record.begins, record.ends, record.used)
  known_for = math.max(known_for, record.ends - now + tonumber(ARGV[5]))
end
redis.call('HSET', KEYS[1], unpack(changes))
-- Windows that this caller does not name may matter for longer.
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(known_for * 1000, redis.call('PTTL', KEYS[1]))))
return {1, string.format('%.17g', wait)}
