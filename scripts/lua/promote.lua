#!lua flags=allow-oom
-- promote: moves delayed jobs to waiting now, before their due time, or to held if they have limits.
-- KEYS delayed waiting priorities attempts meta wake requests answers parked unserved limits held held_by arrivals undecided
-- ARGV now, request; then ids
-- RETURNS per id "delayed", or '' (the job is not delayed: nothing changed)
local delayed, waiting, priorities, attempts, meta, wake, requests, answers, parked, unserved, limits, held, held_by, arrivals, undecided = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: repeated
-- A caller that did not get the reply sends its request again, and a frozen server may then execute both. The second one returns
-- the recorded answer of the first, even if the jobs have moved since.
local recorded = redis.call('HGET', answers, ARGV[2])
if recorded then
    local words = {}
    for word in string.gmatch(recorded, '([^\n]*)\n') do words[#words + 1] = word end
    return words
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

-- shared: note a number
-- `fifo` also counts jobs that are moved or known already, and jobs that are only due later. So these are counted too: `fifo` less
-- `moved` is the number of new jobs, and `fifo` less `later` that of jobs that have come to waiting. A damaged number starts again.
local function add_up(field, n)
    if type(redis.pcall('HINCRBY', meta, field, n)) == 'table' then redis.call('HSET', meta, field, n) end
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

-- shared: place
-- A damaged row counts as priority 0.
local function place(id)
    local priority, lifo, front = string.match(redis.call('HGET', priorities, id) or '', '^(%-?%d+)(L?)(F?)$')
    -- A job that was rate limited goes to the front, once.
    if front == 'F' then redis.call('HSET', priorities, id, priority .. lifo) end
    -- With aging a LIFO job would go before all others, which could starve.
    local first = front == 'F' or lifo == 'L' and aging_of(redis.call('HGET', meta, 'aging')) == 0
    local number = first and -turn('lifo', 1)
    if not number then
        number = turn('fifo', 1)
        add_up('moved', 1)
    end
    return score_of(tonumber(priority) or 0, number)
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

local states, moved = {}, 0
for i = 3, #ARGV do
    local id = ARGV[i]
    states[i - 2] = ''
    unpark(id)
    if redis.call('ZREM', delayed, id) == 1 then
        local names = redis.call('HGET', limits, id)
        local at = place(id)
        -- A job that ran, or was put back, has a row in attempts. It was decided about before.
        if names and acts_on(names) and redis.call('HEXISTS', attempts, id) == 0 then
            redis.call('ZADD', undecided, string.format('%.0f', at), id)
        end
        if names then hold(id, names, at) else redis.call('ZADD', waiting, at, id) end
        local runs, _, snoozes = read_attempts(id)
        write_attempts(id, runs, now, snoozes)
        states[i - 2] = 'delayed'
        moved = moved + 1
    end
end
if moved > 0 then redis.call('ZADD', wake, 0, 't') end
-- shared: record
redis.call('HSET', answers, ARGV[2], table.concat(states, '\n') .. '\n')
redis.call('ZADD', requests, now, ARGV[2])
-- Answers that a dropped queue left behind have a time to live. From now on they are the answers of a queue in use.
redis.call('PERSIST', answers)
redis.call('PERSIST', requests)
-- No caller repeats a request after two minutes.
local old = redis.call('ZRANGE', requests, '-inf', now - 120000, 'BYSCORE', 'LIMIT', 0, 100)
if #old > 0 then
    redis.call('HDEL', answers, unpack(old))
    redis.call('ZREM', requests, unpack(old))
end
-- end
return states
