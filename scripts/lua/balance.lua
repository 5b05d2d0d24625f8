#!lua flags=allow-oom
-- balance: takes the right to balance what the partitions of a queue may use of the queue's own rule, or extends it.
-- KEYS meta
-- ARGV now, worker, ms for which it has the right from now on
-- RETURNS the fence of the worker, which `share` wants; 0 if another worker has the right
local meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: one at a time
-- One process at a time has the turn, for `ms` from its last call on. Returns the fence of the turn, or 0 if another process has it.
local function take_turn(key, field, who, ms)
    local fence, till, holder = string.match(redis.call('HGET', key, field) or '', '^(%d+) (%d+) (.+)$')
    fence, till = tonumber(fence) or 0, tonumber(till) or 0
    -- A time that is further ahead than a turn lasts was written by a wrong clock.
    if holder ~= who and till > now and till <= now + ms then return 0 end
    if holder ~= who or till <= now then fence = fence + 1 end
    redis.call('HSET', key, field, string.format('%.0f %.0f %s', fence, now + ms, who))
    return fence
end
-- end

return take_turn(meta, 'balancer', ARGV[2], tonumber(ARGV[3]))
