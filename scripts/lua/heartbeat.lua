#!lua flags=allow-oom
-- heartbeat: writes the row of a living worker. It removes the rows of workers without a heartbeat for `ttl`, and the recorded
-- claims of workers without a row.
-- KEYS workers workers_info claims
-- ARGV now, worker, info (JSON; '': the worker leaves), ttl ms
-- RETURNS the number of workers
local workers, workers_info, claims = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local gone = redis.call('ZRANGE', workers, '-inf', now - tonumber(ARGV[4]), 'BYSCORE', 'LIMIT', 0, 100)
if ARGV[3] == '' then
    gone[#gone + 1] = ARGV[2]
else
    redis.call('ZADD', workers, now, ARGV[2])
    redis.call('HSET', workers_info, ARGV[2], ARGV[3])
end
-- A heartbeat in the future was written before the server's clock was set back. Set it to now: a dead worker would count as
-- alive until the clock reaches that time.
for _, worker in ipairs(redis.call('ZRANGE', workers, '(' .. string.format('%.0f', now), '+inf', 'BYSCORE', 'LIMIT', 0, 100)) do
    redis.call('ZADD', workers, now, worker)
end
for _, worker in ipairs(gone) do
    if worker ~= ARGV[2] or ARGV[3] == '' then
        redis.call('ZREM', workers, worker)
        redis.call('HDEL', workers_info, worker)
        redis.call('HDEL', claims, worker .. ':0', worker .. ':1', worker .. ':2')
    end
end
-- A claim that was executed before the first heartbeat of its worker, or after the last one, has no row in workers. It would
-- stay for ever, so remove it here.
local known = redis.call('ZCARD', workers)
if redis.call('HLEN', claims) > 3 * known then
    for _, lane in ipairs(redis.call('HKEYS', claims)) do
        if not redis.call('ZSCORE', workers, string.match(lane, '(.*):')) then redis.call('HDEL', claims, lane) end
    end
end
return known
