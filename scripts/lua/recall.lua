#!lua flags=allow-oom
-- recall: moves parked jobs from delayed to the front of their priority in waiting, or in held if they have limits, for a worker that
-- knows their types.
-- KEYS delayed waiting priorities attempts meta wake parked unserved limits held held_by arrivals
-- ARGV now, limit; then types
-- RETURNS the number of moved jobs; if it is `limit`, more may be parked
local delayed, waiting, priorities, attempts, meta, wake, parked, unserved, limits, held, held_by, arrivals = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local limit = tonumber(ARGV[2])
if redis.call('EXISTS', parked) == 0 then return 0 end

-- shared: unpark
-- A delayed job whose type no worker knew is in `parked`, too. Its row in `unserved` has the time that it was delayed for. If it
-- leaves earlier, the rest of this time does not count.
local function unpark(id)
    local times, spent, kind = string.match(redis.call('HGET', unserved, id) or '', '^(%d+) (%d+) (.+)$')
    if not kind or redis.call('ZREM', parked, kind .. '\0' .. id) == 0 then return end
    local early = math.max(0, (tonumber(redis.call('ZSCORE', delayed, id)) or 0) - now)
    redis.call('HSET', unserved, id, string.format('%s %.0f', times, math.max(0, spent - early)))
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

local ids, members = {}, {}
for i = 3, #ARGV do
    if #ids == limit then break end
    local first, last = '[' .. ARGV[i] .. '\0', '(' .. ARGV[i] .. '\1'
    for _, member in ipairs(redis.call('ZRANGE', parked, first, last, 'BYLEX', 'LIMIT', 0, limit - #ids)) do
        members[#members + 1], ids[#ids + 1] = member, string.sub(member, #ARGV[i] + 2)
    end
end
-- Walk backwards, because each job is put in front of the one before it. So the first job stays first.
for i = #ids, 1, -1 do
    local id = ids[i]
    unpark(id)
    -- A damaged row does not tell the type.
    redis.call('ZREM', parked, members[i])
    if redis.call('ZREM', delayed, id) == 1 then
        local priority = string.match(redis.call('HGET', priorities, id) or '', '^%-?%d+')
        local place = score_of(tonumber(priority) or 0, -turn('lifo', 1))
        local names = redis.call('HGET', limits, id)
        if names then hold(id, names, place) else redis.call('ZADD', waiting, place, id) end
        local runs, _, snoozes = read_attempts(id)
        write_attempts(id, runs, now, snoozes)
    end
end
if #ids > 0 then redis.call('ZADD', wake, 0, 't') end
return #ids
