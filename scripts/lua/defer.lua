#!lua flags=allow-oom
-- defer: moves held jobs of a type that the worker does not know from active to delayed, uncharged. The delay doubles each time.
-- The control channel tells all workers when the first of these jobs is due, so that a worker that knows its type is ready then.
-- KEYS active leases delayed attempts unserved metrics wake control limits admitted openings
-- ARGV now, first delay ms, longest delay ms, the types of the jobs (a JSON list, for the message); then per job: id, token
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
local active, leases, delayed, attempts, unserved, metrics, wake, control, limits, admitted, openings = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: end of a lease
-- Only the holder of the token can end the lease. A worker whose job was given to another one changes nothing.
local function end_lease(id, token)
    if redis.call('HGET', leases, id) ~= token then return false end
    redis.call('ZREM', active, id)
    redis.call('HDEL', leases, id)
    return true
end
-- end

-- shared: attempts
-- A row has up to three numbers: the runs that were charged; the time from which the job can run, if it was put back since its
-- enqueue; how often it was snoozed, if it was.
local function read_attempts(id)
    local runs, since, snoozes = string.match(redis.call('HGET', attempts, id) or '', '^(%d+) ?(%d*) ?(%d*)')
    return tonumber(runs) or 0, tonumber(since), tonumber(snoozes)
end

local function write_attempts(id, runs, since, snoozes)
    local row = string.format('%.0f', runs)
    if since then row = row .. string.format(' %.0f', since) end
    if since and snoozes then row = row .. string.format(' %.0f', snoozes) end
    redis.call('HSET', attempts, id, row)
end
-- end

-- shared: add
-- A damaged count starts again. Otherwise it would refuse the outcomes of all jobs.
local function add(field, n)
    if type(redis.pcall('HINCRBY', metrics, field, n)) == 'table' then redis.call('HSET', metrics, field, n) end
end
-- end

-- shared: free
-- Jobs that leave waiting or active give back their places under their limit keys. admit looks at these keys first.
local function free(list)
    if #list == 0 or redis.call('EXISTS', limits) == 0 then return end
    local places, opened, seen = {}, {}, {}
    for i, names in ipairs(redis.call('HMGET', limits, unpack(list))) do
        for key in string.gmatch(names or '', '[^\n]+') do
            places[#places + 1] = key .. '\0' .. list[i]
            if not seen[key] then
                seen[key] = true
                opened[#opened + 1], opened[#opened + 2] = '-inf', key
            end
        end
    end
    if #places > 0 then
        redis.call('ZREM', admitted, unpack(places))
        redis.call('ZADD', openings, unpack(opened))
    end
end
-- end

local first, longest = tonumber(ARGV[2]), tonumber(ARGV[3])
local lost, deferred, soonest = {}, {}, longest
for i = 5, #ARGV, 2 do
    local id = ARGV[i]
    if end_lease(id, ARGV[i + 1]) then
        local times = (tonumber(string.match(redis.call('HGET', unserved, id) or '', '^%d+$')) or 0) + 1
        redis.call('HSET', unserved, id, string.format('%.0f', times))
        local delay = math.min(longest, first * 2 ^ math.min(times - 1, 40))
        redis.call('ZADD', delayed, now + delay, id)
        local runs, _, snoozes = read_attempts(id)
        write_attempts(id, runs, now + delay, snoozes)
        deferred[#deferred + 1], soonest = id, math.min(soonest, delay)
    else
        lost[#lost + 1] = id
    end
end
free(deferred)
if #deferred > 0 then
    add('unserved', #deferred)
    redis.call('ZADD', wake, 0, 't')
    redis.call('PUBLISH', control, string.format('unserved [%d,%s]', soonest, ARGV[4]))
end
return lost
