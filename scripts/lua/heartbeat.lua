#!lua flags=allow-oom
-- heartbeat: a worker says that it lives; rows of workers not heard of for `ttl` go.
-- KEYS workers workers_info claims
-- ARGV now, worker, info (JSON; '': the worker leaves), ttl ms
-- RETURNS how many workers there are
local workers, workers_info, claims = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local gone = redis.call('ZRANGE', workers, '-inf', now - tonumber(ARGV[4]), 'BYSCORE', 'LIMIT', 0, 100)
if ARGV[3] == '' then
    gone[#gone + 1] = ARGV[2]
else
    redis.call('ZADD', workers, now, ARGV[2])
    redis.call('HSET', workers_info, ARGV[2], ARGV[3])
end
for _, worker in ipairs(gone) do
    if worker ~= ARGV[2] or ARGV[3] == '' then
        redis.call('ZREM', workers, worker)
        redis.call('HDEL', workers_info, worker)
        redis.call('HDEL', claims, worker .. ':0', worker .. ':1', worker .. ':2')
    end
end
return redis.call('ZCARD', workers)
