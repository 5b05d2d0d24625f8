#!lua flags=allow-oom
-- balance: takes the right to balance what the partitions of a queue may use of the queue's own rule, or extends it.
-- KEYS meta
-- ARGV now, worker, ms for which it has the right from now on
-- RETURNS the fence of the worker, which `share` wants; 0 if another worker has the right
local meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local ms = tonumber(ARGV[3])
local fence, till, holder = string.match(redis.call('HGET', meta, 'balancer') or '', '^(%d+) (%d+) (.+)$')
fence, till = tonumber(fence) or 0, tonumber(till) or 0
-- A time that is further ahead than the right lasts was written by a wrong clock.
if holder ~= ARGV[2] and till > now and till <= now + ms then return 0 end
if holder ~= ARGV[2] or till <= now then fence = fence + 1 end
redis.call('HSET', meta, 'balancer', string.format('%.0f %.0f %s', fence, now + ms, ARGV[2]))
return fence
