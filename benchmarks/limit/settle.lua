-- settle: held jobs go from active to completed, with their results.
-- KEYS active leases completed results
-- ARGV holder, then per job: id, result
local active, leases, completed, results = unpack(KEYS)
local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)
local asked = {}
for i = 2, #ARGV, 2 do asked[i / 2] = ARGV[i] end
local held = redis.call('HMGET', leases, unpack(asked))
local ids, finished, rows = {}, {}, {}
for i, id in ipairs(asked) do
    if held[i] == ARGV[1] then
        local n = #ids + 1
        ids[n] = id
        finished[2 * n - 1], finished[2 * n] = now, id
        rows[2 * n - 1], rows[2 * n] = id, ARGV[2 * i + 1]
    end
end
if #ids == 0 then return 0 end
redis.call('ZREM', active, unpack(ids))
redis.call('HDEL', leases, unpack(ids))
redis.call('ZADD', completed, unpack(finished))
redis.call('HSET', results, unpack(rows))
return #ids
