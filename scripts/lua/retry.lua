#!lua
-- retry: moves finished jobs back to waiting, or to held if they have limits. Their attempts start at 0 again, and the errors of earlier attempts are kept.
-- KEYS failed completed waiting delayed active blocked priorities attempts results progress unserved expires keys unique unique_until meta wake requests answers limits held held_by arrivals start_by end_by events seats
-- ARGV now, request; then ids
-- RETURNS per id the state before; '' (unknown id or unfinished job: nothing changed); or "key <id>": job <id> holds its key now
local failed, completed, waiting, delayed, active, blocked, priorities, attempts, results, progress, unserved, expires, keys, unique, unique_until, meta, wake, requests, answers, limits, held, held_by, arrivals, start_by, end_by, events, seats = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

local match = string.match

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

-- shared: holder
-- The row of a key names the job that took it last, and a job that held it then and had not ended: "id fingerprint latest other".
-- A job holds a key as long as its own row says so: by the set that it stands in, or by the time of its end. A key with a ttl
-- is held until then, while the job has a row. A key with a fingerprint is that of a request, whose client gets the same answer
-- for the whole ttl, job or no job.
local QUEUED = { waiting = true, delayed = true, held = true, blocked = true }
local SETS = { { 'waiting', waiting }, { 'delayed', delayed }, { 'active', active }, { 'held', held }, { 'blocked', blocked },
    { 'completed', completed }, { 'failed', failed } }
local function state_of(id)
    for _, set in ipairs(SETS) do
        local score = redis.call('ZSCORE', set[2], id)
        if score then return set[1], tonumber(score) end
    end
    return nil
end

local function holder(key, mode, time)
    local id, fingerprint, other = match(redis.call('HGET', unique, key) or '', '^(%S+) (%S+) ?%S* ?(%S*)$')
    if not id then return nil end
    local till = redis.call('ZSCORE', unique_until, key)
    if till then
        local state, score = state_of(id)
        if tonumber(till) > now and (fingerprint ~= '-' or state) then return id, fingerprint, state or '', score end
        return nil
    end
    for _, one in ipairs({ id, other }) do
        local state, score = state_of(one)
        local holds = QUEUED[state]
        if mode ~= 'queued' then holds = holds or state == 'active' or mode == 'ended' and state and score + time > now end
        if holds then return one, fingerprint, state, score end
    end
    return nil
end
-- end

-- The keys that the job takes again, each behind the mark of its mode, and another job that holds one of them now. Keys with a ttl
-- (a tab alone) are not taken again.
local function own_keys(id)
    local own = {}
    for line in string.gmatch(redis.call('HGET', keys, id) or '', '[^\n]+') do
        local mark, key = match(line, '^(%l*\t)(.*)$')
        mark, key = mark or '', key or line
        if mark ~= '\t' then
            local other = mark ~= 'running\t' and holder(key, mark == 'queued\t' and 'queued' or 'unfinished', 0)
            if other and other ~= id then return own, other end
            own[#own + 1] = key
        end
    end
    return own, nil
end

-- A job that is active may have the key too, if the key is only held by jobs that wait. It stays in the row of the key.
local function take(key, id)
    local before = match(redis.call('HGET', unique, key) or '', '^%S+')
    local other = before and before ~= id and not redis.call('ZSCORE', unique_until, key)
    local runs = other and redis.call('ZSCORE', active, before)
    redis.call('HSET', unique, key, id .. (runs and ' - - ' .. before or ' -'))
    -- Remove the past ttl of a later holder. With it, the key of this job would count as free.
    redis.call('ZREM', unique_until, key)
end

-- shared: hold
-- A job with limits or a group waits in held until admit finds room under all of its keys. Its line is the row of its group and keys.
local function hold(id, line, place)
    redis.call('ZADD', held, string.format('%.0f', place), id)
    redis.call('ZADD', held_by, 0, line .. '\0' .. string.format('%016.0f', place + 4503599627370496) .. '\0' .. id)
    redis.call('ZADD', arrivals, 'LT', string.format('%.0f', place), line)
end
-- end

-- A job that was killed, or expired, while it was held left its seats behind. They would count again.
local function leave_seats(id, names)
    if redis.call('EXISTS', seats) == 0 then return end
    for key in string.gmatch(names, '[^\n]+') do
        local member = key .. '\0' .. id
        redis.call('ZREM', seats, member)
        redis.call('ZREMRANGEBYLEX', seats, '[' .. member .. '\0', '(' .. member .. '\1')
    end
end

local states, moved = {}, {}
for i = 3, #ARGV do
    local id, state = ARGV[i], ''
    local set = redis.call('ZSCORE', failed, id) and failed or redis.call('ZSCORE', completed, id) and completed
    if set then
        local own, other = own_keys(id)
        if other then
            state = 'key ' .. other
        else
            state = set == failed and 'failed' or 'completed'
            redis.call('ZREM', set, id)
            redis.call('ZREM', expires, id)
            -- A retry by hand is a new chance: neither `expires` nor a deadline that has passed counts any more.
            redis.call('ZREM', start_by, id)
            local by = redis.call('ZSCORE', end_by, id)
            if by and math.abs(tonumber(by)) <= now then redis.call('ZREM', end_by, id) end
            for _, column in ipairs({ results, progress, unserved }) do redis.call('HDEL', column, id) end
            -- No attempt is charged, and the job can run from now on.
            redis.call('HSET', attempts, id, string.format('0 %.0f', now))
            for _, key in ipairs(own) do take(key, id) end
            local names = redis.call('HGET', limits, id)
            if names then
                leave_seats(id, names)
                hold(id, names, place(id))
            else
                redis.call('ZADD', waiting, place(id), id)
            end
            moved[#moved + 1] = id
        end
    end
    states[i - 2] = state
end
if #moved > 0 then
    redis.call('ZADD', wake, 0, 't')
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'retried', table.concat(moved, ' '))
end
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
