#!lua flags=allow-oom
-- complete: held jobs go from active to completed, with their results.
-- KEYS active leases completed results expires events metrics
-- ARGV now, m, then m pairs (metrics field, how many); then per job: id, token, result, retention ms ('': the queue's)
-- RETURNS how many stand in completed now; then the ids that were not held (they changed nothing)
local active, leases, completed, results, expires, events, metrics = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local first = 2 + 2 * tonumber(ARGV[2])
local count = (#ARGV - first) / 4
local asked = {}
for i = 1, count do asked[i] = ARGV[first + 4 * i - 3] end
local held = redis.call('HMGET', leases, unpack(asked))
local ids, finished, rows, lost = {}, {}, {}, { 0 }
-- as text once, not by the ZADD for every job
local finish = string.format('%.0f', now)
local n = 0
for i = 1, count do
    local at = first + 4 * i
    local id = asked[i]
    if held[i] == ARGV[at - 2] then
        n = n + 1
        ids[n] = id
        finished[2 * n - 1], finished[2 * n] = finish, id
        rows[2 * n - 1], rows[2 * n] = id, ARGV[at - 1]
        if ARGV[at] ~= '' then redis.call('ZADD', expires, now + tonumber(ARGV[at]), id) end
    else
        lost[#lost + 1] = id
    end
end
if n > 0 then
    redis.call('ZREM', active, unpack(ids))
    redis.call('HDEL', leases, unpack(ids))
    redis.call('ZADD', completed, unpack(finished))
    redis.call('HSET', results, unpack(rows))
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'completed', table.concat(ids, ' '))
    redis.call('HINCRBY', metrics, 'completed', n)
    redis.call('HINCRBY', metrics, 'm:' .. string.format('%.0f', math.floor(now / 60000)) .. ':completed', n)
    for i = 3, first, 2 do redis.call('HINCRBY', metrics, ARGV[i], ARGV[i + 1]) end
end
lost[1] = redis.call('ZCARD', completed)
return lost
