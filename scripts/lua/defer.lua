#!lua flags=allow-oom
-- defer: moves leased jobs that the worker cannot run from active to delayed, uncharged.
-- If the worker does not know the type, the job is parked: it stays delayed for the given time, unless a worker that knows the
-- type recalls it. The control channel names these types to all workers. Any other job is delayed for twice as long each time.
-- KEYS active leases delayed attempts unserved metrics wake control parked limits weights admitted openings
-- ARGV now, first delay ms, longest delay ms, the types of the parked jobs (a JSON list, for the message); then per job: id, token,
--   type to park it under ('': not parked), ms to park it for
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
local active, leases, delayed, attempts, unserved, metrics, wake, control, parked, limits, weights, admitted, openings = unpack(KEYS)
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
-- A row has up to four numbers: the runs that were charged; the time from which the job can run, if it was put back since its
-- enqueue; how often it was snoozed, and how often it was rate limited, if it was. The last two are passed on as one text.
local function read_attempts(id)
    local runs, since, snoozes = string.match(redis.call('HGET', attempts, id) or '', '^(%d+) ?(%d*) ?(%d* ?%d*)')
    return tonumber(runs) or 0, tonumber(since), snoozes or ''
end

local function write_attempts(id, runs, since, snoozes)
    local row = string.format('%.0f', runs)
    if since then row = row .. string.format(' %.0f', since) end
    if since and snoozes ~= '' then row = row .. ' ' .. snoozes end
    redis.call('HSET', attempts, id, row)
end
-- end

-- shared: add
-- A damaged count starts again. Otherwise it would refuse the outcomes of all jobs.
local function add(field, n)
    if type(redis.pcall('HINCRBY', metrics, field, n)) == 'table' then redis.call('HSET', metrics, field, n) end
end
-- end

-- shared: slots
-- A job with several slots has as many places under each key, and while it is active under the key `queue`. The first place of a
-- key is "key NUL id", the others follow it.
local function free_slots(id, weight, names)
    if tonumber(string.match(weight, '^%d+') or 1) == 1 then return end
    for key in string.gmatch((names or '') .. '\nqueue', '[^\n]+') do
        redis.call('ZREMRANGEBYLEX', admitted, '[' .. key .. '\0' .. id .. '\0', '(' .. key .. '\0' .. id .. '\1')
    end
end
-- end

-- shared: free
-- Jobs that leave waiting or active give back their places under their limit keys. admit looks at these keys first. Returns how
-- many of them have each breaker.
local function free(list)
    local places, opened, seen, ended = {}, {}, {}, {}
    if #list == 0 or redis.call('EXISTS', limits, weights) == 0 then return ended end
    local rows = redis.call('HMGET', weights, unpack(list))
    for i, names in ipairs(redis.call('HMGET', limits, unpack(list))) do
        if rows[i] then free_slots(list[i], rows[i], names) end
        for key in string.gmatch(names or '', '[^\n]+') do
            places[#places + 1] = key .. '\0' .. list[i]
            -- The key of a breaker counts the outcomes of its type.
            if string.byte(key) == 33 then ended[key] = (ended[key] or 0) + 1 end
            -- A group counts its jobs, but has no bound that they could make room under.
            if not seen[key] and string.byte(key) ~= 64 then
                seen[key] = true
                opened[#opened + 1], opened[#opened + 2] = '-inf', key
            end
        end
    end
    if #places > 0 then redis.call('ZREM', admitted, unpack(places)) end
    if #opened > 32 then
        -- A small set is a list until a long member makes Redis convert it. See decision 20.
        local long = string.rep('x', 65)
        redis.call('ZADD', openings, '-inf', long, unpack(opened))
        redis.call('ZREM', openings, long)
    elseif #opened > 0 then
        redis.call('ZADD', openings, unpack(opened))
    end
    return ended
end
-- end

local first, longest = tonumber(ARGV[2]), tonumber(ARGV[3])
local lost, deferred, soonest = {}, {}, math.huge
for i = 5, #ARGV, 4 do
    local id, kind = ARGV[i], ARGV[i + 2]
    if end_lease(id, ARGV[i + 1]) then
        local times, spent = string.match(redis.call('HGET', unserved, id) or '', '^(%d+) ?(%d*)')
        times, spent = (tonumber(times) or 0) + 1, tonumber(spent) or 0
        local delay = kind == '' and math.min(longest, first * 2 ^ math.min(times - 1, 40)) or tonumber(ARGV[i + 3])
        local row = string.format('%.0f %.0f', times, spent + delay)
        if kind ~= '' then
            row = row .. ' ' .. kind
            redis.call('ZADD', parked, 0, kind .. '\0' .. id)
        end
        redis.call('HSET', unserved, id, row)
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
    redis.call('PUBLISH', control, string.format('unserved [%.0f,%s]', soonest, ARGV[4]))
end
return lost
