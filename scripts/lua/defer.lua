#!lua flags=allow-oom
-- defer: held jobs whose type the worker does not know go from active to delayed, uncharged, for a time that doubles.
-- KEYS active leases delayed unserved metrics wake
-- ARGV now, first delay ms, longest delay ms; then per job: id, token
-- RETURNS the ids that were not held (they changed nothing)
local active, leases, delayed, unserved, metrics, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local first, longest = tonumber(ARGV[2]), tonumber(ARGV[3])
local lost, deferred = {}, 0
for i = 4, #ARGV, 2 do
    local id, token = ARGV[i], ARGV[i + 1]
    if redis.call('HGET', leases, id) == token then
        redis.call('ZREM', active, id)
        redis.call('HDEL', leases, id)
        local times = redis.call('HINCRBY', unserved, id, 1)
        redis.call('ZADD', delayed, now + math.min(longest, first * 2 ^ math.min(times - 1, 40)), id)
        deferred = deferred + 1
    else
        lost[#lost + 1] = id
    end
end
if deferred > 0 then
    redis.call('HINCRBY', metrics, 'unserved', deferred)
    redis.call('ZADD', wake, 0, 't')
end
return lost
