#!lua flags=allow-oom
-- forward: moves due jobs from delayed to waiting, or to held if they have limits, in the order of their due times.
-- KEYS delayed waiting priorities meta wake parked unserved; limits held held_by arrivals undecided attempts
--   Leave out the keys after the semicolon until a reply says that the queue has limits.
-- ARGV now, limit
-- RETURNS the number of moved jobs; ms until the next job is due (0: due already, -1: no delayed job);
--   1 if held jobs wait for admit, or if jobs are due in a queue with limits whose keys are left out
--   (nothing changed), else 0
local delayed, waiting, priorities, meta, wake, parked, unserved, limits, held, held_by, arrivals, undecided, attempts = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local limit = tonumber(ARGV[2])
local due = redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
local moved = #due

local function answer()
    local head = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    local next_due = -1
    if head[2] then next_due = math.max(0, math.ceil(tonumber(head[2]) - now)) end
    return { moved, next_due, limits and redis.call('EXISTS', held) or 0 }
end

if moved == 0 then return answer() end
if not limits and redis.call('HEXISTS', meta, 'limited') == 1 then return { 0, -1, 1 } end

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

-- shared: acts
-- meta names the rules with an action for jobs over their limit. overflow decides about a job under such a rule when it is due for
-- the first time, before admit looks at any job.
local acting
local function acts_on(line)
    if not acting then acting = redis.call('HGET', meta, 'over') or '' end
    if acting == '' then return false end
    for name in string.gmatch('\n' .. line, '\n([%w_][^:\n]*)') do
        if string.find(acting, '\n' .. name .. '\n', 1, true) then return true end
    end
    return false
end
-- end

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

-- shared: note a number
-- `fifo` also counts jobs that are moved or known already, and jobs that are only due later. So these are counted too: `fifo` less
-- `moved` is the number of new jobs, and `fifo` less `later` that of jobs that have come to waiting. A damaged number starts again.
local function add_up(field, n)
    if type(redis.pcall('HINCRBY', meta, field, n)) == 'table' then redis.call('HSET', meta, field, n) end
end
-- end

local columns = redis.call('EXISTS', priorities) == 1 and redis.call('HMGET', priorities, unpack(due)) or {}
local fifo = turn('fifo', moved) - moved
add_up('moved', moved)
local aged = fifo > 2199023255552
local times = aged and redis.call('ZMSCORE', delayed, unpack(due)) or {}
local names = limits and redis.call('EXISTS', limits) == 1 and redis.call('HMGET', limits, unpack(due)) or {}
-- Jobs that were rate limited go to the front. Walk backwards, so that the job that is due first stays first.
local front = {}
for i = moved, 1, -1 do
    local own = string.match(columns[i] or '', '^(%-?%d+L?)F$')
    if own then
        front[i] = -turn('lifo', 1)
        redis.call('HSET', priorities, due[i], own)
    end
end
local ready = {}
for i = 1, moved do
    local priority, lifo = string.match(columns[i] or '', '^(%-?%d+)(L?)F?$')
    -- With aging a LIFO job would go before all others, which could starve. enqueue refuses it. One that came before aging, or from a
    -- schedule, waits like the others.
    local number = front[i] or lifo == 'L' and not aged and -turn('lifo', 1) or fifo + i
    -- With aging a job has waited since it was due, however late this call is.
    if times[i] and number > 0 then number = math.min(number, 4398046511104 + 1000 * math.floor(times[i]) + (i - 1) % 1000) end
    local place = score_of(tonumber(priority) or 0, number)
    -- A job that ran, or was put back, has a row in attempts. It was decided about before.
    if names[i] and acts_on(names[i]) and redis.call('HEXISTS', attempts, due[i]) == 0 then
        redis.call('ZADD', undecided, string.format('%.0f', place), due[i])
    end
    if names[i] then hold(due[i], names[i], place) else ready[#ready + 1], ready[#ready + 2] = place, due[i] end
end
if redis.call('EXISTS', parked) == 1 then
    for _, id in ipairs(due) do unpark(id) end
end
redis.call('ZREM', delayed, unpack(due))
if #ready > 0 then redis.call('ZADD', waiting, unpack(ready)) end
redis.call('ZADD', wake, 0, 't')
return answer()
