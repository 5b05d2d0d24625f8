#!lua flags=allow-oom
-- defer: held jobs whose type the worker does not know go from active to delayed, uncharged, for a time that doubles.
-- All workers hear over the control channel when the first of them is due: those that know its type should be there then.
-- KEYS active leases delayed unserved metrics wake control
-- ARGV now, first delay ms, longest delay ms, their types (a JSON list, for the workers); then per job: id, token
-- RETURNS the ids that were not held (they changed nothing)
local active, leases, delayed, unserved, metrics, wake, control = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local first, longest = tonumber(ARGV[2]), tonumber(ARGV[3])
local lost, deferred, soonest = {}, 0, longest
for i = 5, #ARGV, 2 do
    local id, token = ARGV[i], ARGV[i + 1]
    if redis.call('HGET', leases, id) == token then
        redis.call('ZREM', active, id)
        redis.call('HDEL', leases, id)
        local times = redis.call('HINCRBY', unserved, id, 1)
        local delay = math.min(longest, first * 2 ^ math.min(times - 1, 40))
        redis.call('ZADD', delayed, now + delay, id)
        deferred, soonest = deferred + 1, math.min(soonest, delay)
    else
        lost[#lost + 1] = id
    end
end
if deferred > 0 then
    redis.call('HINCRBY', metrics, 'unserved', deferred)
    redis.call('ZADD', wake, 0, 't')
    redis.call('PUBLISH', control, string.format('unserved [%d,%s]', soonest, ARGV[4]))
end
return lost
