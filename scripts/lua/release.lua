#!lua flags=allow-oom
-- release: moves leased jobs from active back to the front of their priority in waiting, uncharged.
-- KEYS active leases waiting priorities attempts meta wake limits weights admitted held held_by openings arrivals
-- ARGV now; then per job: id, token
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
local active, leases, waiting, priorities, attempts, meta, wake, limits, weights, admitted, held, held_by, openings, arrivals = unpack(KEYS)
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
local lost, released = {}, {}
-- Walk backwards, because each job is put in front of the one before it. So the first job stays first.
for i = #ARGV - 1, 2, -2 do
    local id = ARGV[i]
    if end_lease(id, ARGV[i + 1]) then
        local priority = string.match(redis.call('HGET', priorities, id) or '', '^%-?%d+')
        local place = score_of(tonumber(priority) or 0, -turn('lifo', 1))
        local names = limited and redis.call('HGET', limits, id)
        if names then hold(id, names, place) else redis.call('ZADD', waiting, place, id) end
        local runs, _, snoozes = read_attempts(id)
        write_attempts(id, runs, now, snoozes)
        released[#released + 1] = id
    else
        lost[#lost + 1] = id
    end
end
free(released)
if #released > 0 then redis.call('ZADD', wake, 0, 't') end
return lost
