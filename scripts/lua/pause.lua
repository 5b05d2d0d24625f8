#!lua flags=allow-oom
-- pause: nothing is claimed from now on. A flag: no job moves, so none can be lost.
-- KEYS meta
-- ARGV now
-- RETURNS 1 when the queue was running, 0 when it was paused already
local meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
return redis.call('HSETNX', meta, 'paused', string.format('%.0f', now))
