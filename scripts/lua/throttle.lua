#!lua flags=allow-oom
-- throttle: moves leased jobs out of active, because their handlers raised RateLimited. The attempt is not charged. What the job
--   names stays closed for the given time: only the job itself, its limit keys, or the queue.
-- KEYS active leases delayed waiting priorities attempts metrics meta wake limits weights admitted held held_by openings arrivals closed
-- ARGV now; then per job: id, token, delay ms, scope
--   scope: "job" (to delayed, and then to the front of its priority), "key" (to the front of its priority in held; its limit keys are closed;
--   a job without limit keys is treated as with "job"), "queue" (to the front of its priority; claims take nothing until then)
-- RETURNS the ids whose token was not the lease's (nothing changed for them); the ids with scope "key" that have no limit keys
-- This script only extends a closing time. Only an operator makes it shorter.
local active, leases, delayed, waiting, priorities, attempts, metrics, meta, wake, limits, weights, admitted, held, held_by, openings, arrivals, closed = unpack(KEYS)
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

-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

-- shared: turn
-- The numbers that give waiting its order. A damaged number starts again behind those of all jobs, and past the bound of rebase.lua,
-- which then gives all jobs low numbers. In a queue with aging `fifo` counts from 2^42 on, and the numbers of FIFO jobs are times: 2^42
-- and us of the clock. `aged` is the last one.
local function turn(counter, n)
    local last = redis.pcall('HINCRBY', meta, counter, n)
    if type(last) == 'table' or last < n or last > 2199023255552 then
        local facts = redis.call('HMGET', meta, 'aging', 'aged')
        if counter == 'fifo' and aging_of(facts[1]) > 0 then
            if type(last) == 'table' or last < 4398046511104 then redis.call('HSET', meta, 'fifo', string.format('%.0f', 4398046511104 + n)) end
            local first = 4398046511104 + 1000 * now
            last = (tonumber(facts[2]) or 0) + n
            -- A number that is more than a minute ahead was given by a wrong clock.
            if not (last >= first + n and last <= first + 60000000) then last = first + n end
            redis.call('HSET', meta, 'aged', string.format('%.0f', last))
        else
            last = 1649267441664 + n
            redis.call('HSET', meta, counter, string.format('%.0f', last))
        end
    end
    return last
end
-- end

-- shared: score
-- Each priority has 2^42 places, and its sequence starts in their middle. In a queue with aging a step of priority is worth as many
-- us of waiting as `aging` says in ms.
local aging
local function score_of(priority, number)
    if priority == 0 then return 2199023255552 + number end
    -- Without aging the numbers of FIFO jobs are smaller. So only jobs at the front have to ask.
    if aging == nil then aging = (number < 0 or number > 2199023255552) and aging_of(redis.call('HGET', meta, 'aging')) or 0 end
    return priority * (aging > 0 and 1000 * aging or 4398046511104) + 2199023255552 + number
end
-- end

-- shared: hold
-- A job with limits or a group waits in held until admit finds room under all of its keys. Its line is the row of its group and keys.
local function hold(id, line, place)
    redis.call('ZADD', held, string.format('%.0f', place), id)
    redis.call('ZADD', held_by, 0, line .. '\0' .. string.format('%016.0f', place + 4503599627370496) .. '\0' .. id)
    redis.call('ZADD', arrivals, 'LT', string.format('%.0f', place), line)
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

local limited = redis.call('EXISTS', limits) == 1
local lost, ended, alone = {}, {}, {}
-- Walk backwards, because each job is put in front of the one before it. So the first job stays first.
for i = #ARGV - 3, 2, -4 do
    local id, scope = ARGV[i], ARGV[i + 3]
    if end_lease(id, ARGV[i + 1]) then
        local till = now + tonumber(ARGV[i + 2])
        local names = limited and redis.call('HGET', limits, id)
        -- A group and a breaker, which are named behind an @ and a !, are no limit keys.
        local keyed = names and string.find('\n' .. names, '\n[^@!]')
        local column = redis.call('HGET', priorities, id) or ''
        local priority = string.match(column, '^%-?%d+') or '0'
        if scope == 'job' or scope == 'key' and not keyed then
            if scope == 'key' then alone[#alone + 1] = id end
            redis.call('ZADD', delayed, till, id)
            -- The letter tells forward and promote to put the job at the front.
            redis.call('HSET', priorities, id, priority .. string.match(column, 'L?$') .. 'F')
        else
            local place = score_of(tonumber(priority), -turn('lifo', 1))
            if names then hold(id, names, place) else redis.call('ZADD', waiting, place, id) end
            if scope == 'queue' then
                if till > (tonumber(redis.call('HGET', meta, 'closed')) or 0) then redis.call('HSET', meta, 'closed', string.format('%.0f', till)) end
            else
                for key in string.gmatch(names, '[^\n]+') do
                    if string.find(key, '^[^@!]') then redis.call('ZADD', closed, 'GT', till, key) end
                end
            end
        end
        local runs, _, snoozes = read_attempts(id)
        local before, times = string.match(snoozes, '^(%d*) ?(%d*)$')
        write_attempts(id, runs, till, string.format('%.0f %.0f', tonumber(before) or 0, (tonumber(times) or 0) + 1))
        ended[#ended + 1] = id
    else
        lost[#lost + 1] = id
    end
end
free(ended)
if #ended > 0 then
    -- Wake a worker, so that one waits for the new time. The worker that sent this call may have no free slot.
    redis.call('ZADD', wake, 0, 't')
    add('rate_limited', #ended)
end
return { lost, alone }
