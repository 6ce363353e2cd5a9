-- Every script begins with this: the server's clock is the one that all instances share.
local seconds, microseconds = unpack(redis.call('TIME'))
local now = tonumber(seconds) + tonumber(microseconds) / 1e6
