#!lua
-- enqueue: adds new jobs to waiting, to delayed until their due time, or to held if they have limits.
-- KEYS waiting jobs meta wake; delayed priorities removed held held_by limits weights arrivals groups undecided start_by end_by reruns
--   Leave out the keys after the semicolon when no job has options: each key costs the server as much time as a field of a job.
-- ARGV now; with all KEYS, repeated (1: the reply to this call may have been lost); then per job: id, spec and, with all KEYS, options
--   options: '' (priority 0, FIFO, at once), or "priority lifo delay" (lifo 0|1; delay ms, or "=unix ms" to run at).
--   After a vertical tab follow "@group" if the job has a group, and then limit keys, one a line. After another one follows the
--   job's row of `weights`, and after a third one "start_by end_by earlier": unix ms by which it must have started and ended, `-` for none, and the
--   job that it runs again, if any.
--   Jobs with deduplication keys are added by enqueue_unique.
-- RETURNS flat triples, only for jobs that were not written: position (from 1), the id, and '-' if the job with this id has the same
--   spec (the call was repeated because its reply was lost), or '!' if another job has this id. The comparison leaves out the fields
--   "at", "expires_at" and "deadline_at" of the spec, which follow from the time of sending. In a repeated call an id is also known if its job was removed since the call
--   was sent: the first sending may have been executed, and the job may have run.
--   A triple with '' and 'full' says that the group of the job holds as many jobs as it may, and one with '' and 'lifo' that the
--   queue has aging, so no job may go before those that wait. One with '' and 'over' says that the job is written, now or
--   earlier, and that the caller must call overflow for it.
--   A first triple 0, '', 'new' says that the queue had no job before, or was dropped since its last one. The caller must then
--   add the queue to the list of queues.
-- This script does not have allow-oom: at maxmemory the server refuses the whole call before its first write.
local waiting, jobs, meta, wake, delayed, priorities, removed, held, held_by, limits, weights, arrivals, groups, undecided, start_by, end_by, reruns = unpack(KEYS)
-- The places of priority 0 start at 2^41. A double holds these numbers exactly. They are formatted as whole numbers here, because
-- Redis formats doubles slowly.
local MIDDLE, format = 2199023255552, string.format
-- Numbers that were given to nobody, because the queue has aging or its sequence is damaged.
local unused = 0
if #ARGV == 3 and redis.call('HSETNX', jobs, ARGV[2], ARGV[3]) == 1 then
    -- A single plain job is what a web handler enqueues and waits for. This path does the same as below in half the time.
    local sequence = redis.pcall('HINCRBY', meta, 'fifo', 1)
    if type(sequence) == 'number' and sequence > 0 and sequence <= MIDDLE then
        redis.call('ZADD', waiting, format('%d', MIDDLE + sequence), ARGV[2])
        if redis.call('EXISTS', wake) == 0 then redis.call('ZADD', wake, 0, 't') end
        return sequence == 1 and { 0, '', 'new' } or {}
    end
    -- The queue has aging, or the sequence is damaged, and is mended below.
    redis.call('HDEL', jobs, ARGV[2])
    unused = 1
end

local width = delayed and 3 or 2
local first = width
local count = (#ARGV - first + 1) / width
local ids, seen = {}, {}
for i = 1, count do ids[i] = ARGV[width * (i - 1) + first] end
local known = redis.call('HMGET', jobs, unpack(ids))
if not delayed then
    -- Nearly every batch holds only plain jobs with new ids. They are written as they stand in ARGV.
    local fresh = true
    for i = 1, count do
        local id = ids[i]
        fresh = fresh and not known[i] and not seen[id]
        seen[id] = true
    end
    local sequence = fresh and redis.pcall('HINCRBY', meta, 'fifo', count)
    if type(sequence) == 'number' and sequence >= count and sequence <= MIDDLE then
        local ready, from = {}, MIDDLE + sequence - count
        for i = 1, count do ready[2 * i - 1], ready[2 * i] = format('%d', from + i), ids[i] end
        redis.call('HSET', jobs, unpack(ARGV, 2))
        redis.call('ZADD', waiting, unpack(ready))
        redis.call('ZADD', wake, 0, 't')
        return sequence == count and { 0, '', 'new' } or {}
    end
    if fresh then unused = unused + count end
    seen = {}
end

local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

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

-- Always write, even if all ids are known. WAIT and WAITAOF wait for the last write of their connection, so a call without
-- a write would return before the earlier jobs are safe.
local fifo = turn('fifo', count) - count
local refused = fifo == 0 and { 0, '', 'new' } or {}

-- shared: same job
-- Quotes inside a JSON string are escaped. So these marks match only where a field begins.
local function without_time(spec)
    local payload = string.find(spec, ',"payload":', 1, true) or #spec + 1
    local head = string.sub(spec, 1, payload - 1)
    for _, field in ipairs({ ',"at":%d+', ',"expires_at":%d+', ',"deadline_at":%d+' }) do head = string.gsub(head, field, '', 1) end
    -- The trace context of the producer is last, and its values are texts without braces.
    return head .. string.gsub(string.sub(spec, payload), ',"trace":{[^{}]*}}$', '}')
end

-- A client may use an id of its own again after the removal. Then `at`, the time of sending, is not before the removal. An id
-- that jobq made says the time itself, and is not used again.
local function was_removed(id, spec)
    local time = redis.call('ZSCORE', removed, id)
    if not time then return false end
    local payload = string.find(spec, ',"payload":', 1, true) or #spec + 1
    local at = string.match(string.sub(spec, 1, payload - 1), ',"at":(%d+)')
    return not at or tonumber(at) < tonumber(time)
end
-- end

local repeated = delayed and ARGV[2] == '1'

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

-- shared: room of a group
-- A group may have a bound for the jobs that it holds.
local spaces = {}
local function is_full(line)
    local group = string.match(line, '^@([^\n]*)')
    if not group then return false end
    if not spaces[group] then
        local most = tonumber(string.match(redis.call('HGET', groups, group) or '', '^%S+ %S+ (%d+)$'))
        local from = '[@' .. group
        spaces[group] = most and most - redis.call('ZLEXCOUNT', held_by, from .. '\0', '(@' .. group .. '\1')
            - redis.call('ZLEXCOUNT', held_by, from .. '\n', '(@' .. group .. '\11') or math.huge
    end
    spaces[group] = spaces[group] - 1
    return spaces[group] < 0
end
-- end

-- shared: life of a job
-- A job may have a time by which it must have started, one by which it must have ended, and an earlier job that it runs again. That
-- one names its last 20 reruns. Returns true if the job has a time.
local function set_life(id, words)
    local from, to, earlier = string.match(words, '^(%S+) (%S+) ?(%S*)$')
    if not from then return false end
    if from ~= '-' then redis.call('ZADD', start_by, from, id) end
    if to ~= '-' then redis.call('ZADD', end_by, to, id) end
    if earlier ~= '' and redis.call('HEXISTS', jobs, earlier) == 1 then
        local list = { id }
        for other in string.gmatch(redis.call('HGET', reruns, earlier) or '', '%S+') do
            if #list < 20 and other ~= id then list[#list + 1] = other end
        end
        redis.call('HSET', reruns, earlier, table.concat(list, ' '))
    end
    return from ~= '-' or to ~= '-'
end
-- end

-- shared: note a number
-- `fifo` also counts jobs that are moved or known already, and jobs that are only due later. So these are counted too: `fifo` less
-- `moved` is the number of new jobs, and `fifo` less `later` that of jobs that have come to waiting. A damaged number starts again.
local function add_up(field, n)
    if type(redis.pcall('HINCRBY', meta, field, n)) == 'table' then redis.call('HSET', meta, field, n) end
end
-- end

local specs, ready, later, soonest, keeps, has_limits = {}, {}, {}, nil, false, false
for i = 1, count do
    local id, spec, options = ids[i], ARGV[width * (i - 1) + first + 1], delayed and ARGV[3 * i + 2] or ''
    local stored = known[i] or seen[id]
    local refusal
    if stored then refusal = without_time(stored) == without_time(spec) and '-' or '!'
    elseif repeated and was_removed(id, spec) then refusal = '-' end
    local priority, lifo, delay, under = 0, false, 0, ''
    if options ~= '' and not refusal then
        local head, limited, weight, life = string.match(options, '^([^\v]*)\v?([^\v]*)\v?([^\v]*)\v?(.*)$')
        under = limited
        local p, l, d = string.match(head, '^(%S+) (%S+) (%S+)$')
        local due = string.match(d, '^=(%d+)$')
        priority, lifo, delay = tonumber(p), l == '1', due and math.max(0, tonumber(due) - now) or tonumber(d)
        -- A delayed job is not held yet.
        if delay <= 0 and is_full(under) then refusal = 'full' end
        -- Jobs that always go first would starve the others.
        if lifo and fifo > MIDDLE then refusal = 'lifo' end
        if not refusal and (priority ~= 0 or lifo) then
            redis.call('HSET', priorities, id, lifo and p .. 'L' or p)
        end
        if not refusal and (under ~= '' or weight ~= '' or life ~= '') then
            if under ~= '' then redis.call('HSET', limits, id, under) end
            if weight ~= '' then redis.call('HSET', weights, id, weight) end
            has_limits = set_life(id, life) or has_limits or under ~= '' or weight ~= ''
        end
    end
    if refusal then
        local n = #refused
        refused[n + 1], refused[n + 2], refused[n + 3] = i, (refusal == 'full' or refusal == 'lifo') and '' or id, refusal
        if refusal == '-' and acts_on(string.match(options, '^[^\v]*\v([^\v]*)') or '') then
            refused[n + 4], refused[n + 5], refused[n + 6] = i, '', 'over'
        end
    else
        seen[id] = spec
        local n = #specs
        specs[n + 1], specs[n + 2] = id, spec
        if delay > 0 then
            n = #later
            later[n + 1], later[n + 2] = now + delay, id
            if not soonest or now + delay < soonest then soonest = now + delay end
        else
            n = #ready
            local place = score_of(priority, lifo and -turn('lifo', 1) or fifo + i)
            if under ~= '' then
                hold(id, under, place)
                if acts_on(under) then
                    redis.call('ZADD', undecided, format('%.0f', place), id)
                    n = #refused
                    refused[n + 1], refused[n + 2], refused[n + 3] = i, '', 'over'
                end
                keeps = true
            else
                ready[n + 1], ready[n + 2] = format('%d', place), id
            end
        end
    end
end
if #specs > 0 then redis.call('HSET', jobs, unpack(specs)) end
local old = unused + count - #specs / 2
if old > 0 then add_up('moved', old) end
if old + #later > 0 then add_up('later', old + #later / 2) end
-- From now on claims come with the keys of limits.
if has_limits then redis.call('HSET', meta, 'limited', 1) end
if #later > 0 then
    local head = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    redis.call('ZADD', delayed, unpack(later))
    -- An idle worker sleeps until the earliest due time that it knows. Wake one if this due time is earlier.
    if not head[2] or soonest <= tonumber(head[2]) then redis.call('ZADD', wake, 0, 't') end
end
if #ready > 0 then
    redis.call('ZADD', waiting, unpack(ready))
    redis.call('ZADD', wake, 0, 't')
end
if keeps then redis.call('ZADD', wake, 0, 't') end
return refused
