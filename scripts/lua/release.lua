#!lua flags=allow-oom
-- release: moves held jobs from active back to the front of their priority in waiting, uncharged.
-- KEYS active leases waiting priorities attempts meta wake
-- ARGV now; then per job: id, token
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
local active, leases, waiting, priorities, attempts, meta, wake = unpack(KEYS)
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

-- shared: turn
-- The numbers that give waiting its order. A damaged number starts again behind those of all jobs, and past the bound of rebase.lua,
-- which then gives all jobs low numbers.
local function turn(counter, n)
    local last = redis.pcall('HINCRBY', meta, counter, n)
    if type(last) == 'table' or last < n or last > 2199023255552 then
        last = 1649267441664 + n
        redis.call('HSET', meta, counter, string.format('%.0f', last))
    end
    return last
end
-- end

local lost, released = {}, 0
-- Walk backwards, because each job is put in front of the one before it. So the first job stays first.
for i = #ARGV - 1, 2, -2 do
    local id = ARGV[i]
    if end_lease(id, ARGV[i + 1]) then
        local priority = string.match(redis.call('HGET', priorities, id) or '', '^%-?%d+')
        redis.call('ZADD', waiting, (tonumber(priority) or 0) * 4398046511104 + 2199023255552 - turn('lifo', 1), id)
        local runs, _, snoozes = read_attempts(id)
        write_attempts(id, runs, now, snoozes)
        released = released + 1
    else
        lost[#lost + 1] = id
    end
end
if released > 0 then redis.call('ZADD', wake, 0, 't') end
return lost
