#!lua flags=no-writes
-- stats: a queue at a glance.
-- KEYS waiting delayed active completed failed blocked jobs meta workers metrics
-- ARGV now, alive ms (workers heard of since then count)
-- RETURNS now; the six sizes in the order of KEYS; paused since (ms, or nil); workers alive;
--   id and spec of the first in waiting (or nil, nil); due time of the first in delayed (or nil); flat pairs of metrics
local waiting, delayed, active, completed, failed, blocked, jobs, meta, workers, metrics = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local first = redis.call('ZRANGE', waiting, 0, 0)
local due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
return {
    now,
    redis.call('ZCARD', waiting), redis.call('ZCARD', delayed), redis.call('ZCARD', active),
    redis.call('ZCARD', completed), redis.call('ZCARD', failed), redis.call('ZCARD', blocked),
    redis.call('HGET', meta, 'paused'),
    redis.call('ZCOUNT', workers, now - tonumber(ARGV[2]), '+inf'),
    -- false: a nil would end the reply here
    first[1] or false,
    first[1] and redis.call('HGET', jobs, first[1]) or false,
    due[2] or false,
    redis.call('HGETALL', metrics),
}
