#!lua flags=allow-oom
-- close: closes a limit key or the whole queue until a time, or opens it, for an operator.
-- KEYS closed reopens openings meta wake
-- ARGV now, key ("queue": the whole queue), ms for which it is closed from now on (0: open it now)
-- RETURNS until when it was closed before (unix ms, or '')
local closed, reopens, openings, meta, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local key, ms = ARGV[2], tonumber(ARGV[3])
local till = string.format('%.0f', now + ms)
-- A worker is woken in any case. It waits for the new time, or claims what may start now.
redis.call('ZADD', wake, 0, 't')
local before
if key == 'queue' then
    before = redis.call('HGET', meta, 'closed')
    if ms > 0 then redis.call('HSET', meta, 'closed', till) else redis.call('HDEL', meta, 'closed') end
else
    before = redis.call('ZSCORE', closed, key)
    if ms > 0 then redis.call('ZADD', closed, till, key) else redis.call('ZREM', closed, key) end
    -- admit looks at the key and finds when it opens.
    redis.call('ZREM', reopens, key)
    redis.call('ZADD', openings, '-inf', key)
end
local at = tonumber(before)
return at and at > now and string.format('%.0f', at) or ''
