#!lua flags=allow-oom
-- schedule_due: reads the schedules that are due, and lends them to the caller: for a moment others do not see them.
-- KEYS schedules schedule_rows schedule_failures meta
-- ARGV now, limit, lent ms, 1 if the caller has planned all schedules again because the clock was set back
-- RETURNS ms until the next schedule is due (0: due already, -1: none); 1 if the clock was set back since the last slot, else 0;
--   now (unix ms); then flat triples name, row, failed jobs, until 1 MB was read
-- If the caller dies, the schedules are due again after that moment. Nothing else depends on it: schedule_fire compares their heads.
local schedules, schedule_rows, schedule_failures, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local last = tonumber(redis.call('HGET', meta, 'scheduled_at') or 0) or 0
local back = last > now + 1000
if ARGV[4] == '1' then
    redis.call('HSET', meta, 'scheduled_at', string.format('%.0f', now))
    back = false
end
local reply, bytes, lent = { -1, back and 1 or 0, string.format('%.0f', now) }, 0, string.format('%.0f', now + tonumber(ARGV[3]))
for _, name in ipairs(redis.call('ZRANGE', schedules, '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))) do
    local row = redis.call('HGET', schedule_rows, name)
    if row then
        local n = #reply
        reply[n + 1], reply[n + 2], reply[n + 3] = name, row, redis.call('HGET', schedule_failures, name) or ''
        redis.call('ZADD', schedules, lent, name)
        bytes = bytes + #row
        if bytes > 1000000 then break end
    else
        redis.call('ZREM', schedules, name)
    end
end
local head = redis.call('ZRANGE', schedules, 0, 0, 'WITHSCORES')
if head[2] then reply[1] = math.max(0, math.ceil(tonumber(head[2]) - now)) end
return reply
