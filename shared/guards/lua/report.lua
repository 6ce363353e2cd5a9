-- KEYS[1] circuit; ARGV 1 or 0 for success or failure, failures that open, pause, successes that close,
-- life of the record in milliseconds → the state afterwards
local state, streak, ends = unpack(redis.call('HMGET', KEYS[1], 'state', 'streak', 'ends'))
local success = ARGV[1] == '1'
state = state or 'CLOSED'
if state == 'OPEN' or (state == 'HALF_OPEN' and tonumber(ends) == 0) then
  return state
end
streak = tonumber(streak or 0) + 1
if success and (state == 'CLOSED' or streak >= tonumber(ARGV[4])) then
  redis.call('DEL', KEYS[1])
  return 'CLOSED'
end
ends = 0
if not success and (state == 'HALF_OPEN' or streak >= tonumber(ARGV[2])) then
  state, streak, ends = 'OPEN', 0, now + tonumber(ARGV[3])
end
redis.call('HSET', KEYS[1], 'state', state, 'streak', streak, 'ends', string.format('%.17g', ends))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return state
