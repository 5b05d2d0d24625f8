#!lua flags=allow-oom
-- close: closes a limit key or the whole queue until a time, or opens it.
-- KEYS closed reopens openings meta wake
-- ARGV now, key ("queue": the whole queue), how, time
--   how: "for" (an operator closes it for `time` ms from now on, 0: opens it now), "longer" (a handler closes it for so many ms; a later
--   time stays), "until" (it is closed in the first partition until this time, unix ms, 0: it is not; this is not counted as a change)
-- RETURNS until when it was closed before (unix ms, or '')
-- The time of a key that an operator has closed is half a ms before a whole one, and opens with it. So partitions can tell it from what
-- handlers close in one of them.
local closed, reopens, openings, meta, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local key, how, time = ARGV[2], ARGV[3], tonumber(ARGV[4])
local whole = key == 'queue'
local before = tonumber((whole and redis.call('HGET', meta, 'closed') or not whole and redis.call('ZSCORE', closed, key)) or 0) or 0
local said = before > now and string.format('%.0f', math.ceil(before)) or ''
local till = time
if how ~= 'until' and time > 0 then till = now + time + (whole and 0 or -0.5) end
if how == 'longer' and before >= till then return said end

-- shared: counted
-- What operators set was changed in this partition. See settings.lua. A damaged count starts again.
local function counted()
    if type(redis.pcall('HINCRBY', meta, 'changes', 1)) == 'table' then redis.call('HSET', meta, 'changes', 1) end
end
-- end

if how ~= 'until' then counted() end
-- A worker is woken in any case. It waits for the new time, or claims what may start now.
redis.call('ZADD', wake, 0, 't')
if whole then
    if till > 0 then redis.call('HSET', meta, 'closed', string.format('%.0f', till)) else redis.call('HDEL', meta, 'closed') end
else
    if till > 0 then redis.call('ZADD', closed, string.format('%.1f', till), key) else redis.call('ZREM', closed, key) end
    -- admit looks at the key and finds when it opens.
    redis.call('ZREM', reopens, key)
    redis.call('ZADD', openings, '-inf', key)
end
return said
