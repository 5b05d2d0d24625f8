#!lua
-- enqueue: adds new jobs to waiting, to delayed until their due time, or to held if they have limits.
-- KEYS waiting jobs meta wake; delayed active blocked priorities keys unique unique_until removed held held_by limits weights arrivals groups
--   Leave out the keys after the semicolon when no job has options: each key costs the server as much time as a field of a job.
-- ARGV now; with all KEYS, repeated (1: the reply to this call may have been lost); then per job: id, spec and, with all KEYS, options
--   options: '' (priority 0, FIFO, at once, no key), or "priority lifo delay" (lifo 0|1; delay ms, or "=unix ms" to run at), followed by a line
--   "ttl fingerprint key" per deduplication key (ttl ms, or -1: while the holder is unfinished). A fingerprint other
--   than '-' marks the idempotency key of a request. Such a key is not released with its job, only after its ttl.
--   After a vertical tab follow "@group" if the job has a group, and then limit keys, one a line. After another one follows the
--   job's row of `weights`.
-- RETURNS flat triples, only for jobs that were not written: position (from 1), id of the earlier job, its fingerprint.
--   For an id that is already known the earlier job is that id itself. The fingerprint is then '-' if the spec is the same (the
--   call was repeated because its reply was lost), or '!' if another job has this id. The comparison leaves out the field
--   "at" of the spec, which is the time of sending. In a repeated call an id is also known if its job was removed since the call
--   was sent: the first sending may have been executed, and the job may have run.
--   A triple with '' and 'full' says that the group of the job holds as many jobs as it may.
--   A first triple 0, '', 'new' says that the queue had no job before, or was dropped since its last one. The caller must then
--   add the queue to the list of queues.
-- This script does not have allow-oom: at maxmemory the server refuses the whole call before its first write.
local waiting, jobs, meta, wake, delayed, active, blocked, priorities, keys, unique, unique_until, removed, held, held_by, limits, weights, arrivals, groups = unpack(KEYS)
-- Each priority has 2^42 places, and its sequence starts at 2^41. A double holds these numbers exactly. They are formatted as
-- whole numbers here, because Redis formats doubles slowly.
local SPAN, MIDDLE, format = 4398046511104, 2199023255552, string.format
if #ARGV == 3 and redis.call('HSETNX', jobs, ARGV[2], ARGV[3]) == 1 then
    -- A single plain job is what a web handler enqueues and waits for. This path does the same as below in half the time.
    local sequence = redis.pcall('HINCRBY', meta, 'fifo', 1)
    if type(sequence) == 'number' and sequence > 0 and sequence <= MIDDLE then
        redis.call('ZADD', waiting, format('%d', MIDDLE + sequence), ARGV[2])
        if redis.call('EXISTS', wake) == 0 then redis.call('ZADD', wake, 0, 't') end
        return sequence == 1 and { 0, '', 'new' } or {}
    end
    -- The sequence is damaged, and is mended below.
    redis.call('HDEL', jobs, ARGV[2])
end

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

local width = delayed and 3 or 2
local first = width
local count = (#ARGV - first + 1) / width
local ids, seen = {}, {}
for i = 1, count do ids[i] = ARGV[width * (i - 1) + first] end
local known = redis.call('HMGET', jobs, unpack(ids))
-- Always write, even if all ids are known. WAIT and WAITAOF wait for the last write of their connection, so a call without
-- a write would return before the earlier jobs are safe.
local fifo = turn('fifo', count) - count
local refused = fifo == 0 and { 0, '', 'new' } or {}

if not delayed then
    -- Nearly every batch holds only plain jobs with new ids. They are written as they stand in ARGV.
    local fresh, ready = true, {}
    for i = 1, count do
        local id = ids[i]
        fresh = fresh and not known[i] and not seen[id]
        seen[id] = true
        ready[2 * i - 1], ready[2 * i] = format('%d', MIDDLE + fifo + i), id
    end
    if fresh then
        redis.call('HSET', jobs, unpack(ARGV, 2))
        redis.call('ZADD', waiting, unpack(ready))
        redis.call('ZADD', wake, 0, 't')
        return refused
    end
    seen = {}
end

local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: holder
-- A job holds a key until the ttl of the key is over or, without a ttl, while the job is unfinished. A job that is gone holds
-- no key. A key with a fingerprint is that of a request, whose client gets the same answer for the whole ttl, job or no job.
local function holder(key)
    local id, fingerprint = string.match(redis.call('HGET', unique, key) or '', '^(%S+) (%S+)$')
    if not id then return nil end
    local till = redis.call('ZSCORE', unique_until, key)
    if till then
        if tonumber(till) > now and (fingerprint ~= '-' or redis.call('HEXISTS', jobs, id) == 1) then return id, fingerprint end
    elseif redis.call('ZSCORE', waiting, id) or redis.call('ZSCORE', delayed, id)
        or redis.call('ZSCORE', active, id) or redis.call('ZSCORE', blocked, id) or redis.call('ZSCORE', held, id) then
        return id, fingerprint
    end
    return nil
end
-- end

-- Quotes inside a JSON string are escaped. So these marks match only where a field begins.
local function without_time(spec)
    local payload = string.find(spec, ',"payload":', 1, true) or #spec + 1
    return (string.gsub(string.sub(spec, 1, payload - 1), ',"at":%d+', '', 1)) .. string.sub(spec, payload)
end

-- A client may use an id of its own again after the removal. Then `at`, the time of sending, is not before the removal. An id
-- that jobq made says the time itself, and is not used again.
local repeated = delayed and ARGV[2] == '1'
local function was_removed(id, spec)
    local time = redis.call('ZSCORE', removed, id)
    if not time then return false end
    local payload = string.find(spec, ',"payload":', 1, true) or #spec + 1
    local at = string.match(string.sub(spec, 1, payload - 1), ',"at":(%d+)')
    return not at or tonumber(at) < tonumber(time)
end

-- shared: hold
-- A job with limits or a group waits in held until admit finds room under all of its keys. Its line is the row of its group and keys.
local function hold(id, line, place)
    redis.call('ZADD', held, string.format('%.0f', place), id)
    redis.call('ZADD', held_by, 0, line .. '\0' .. string.format('%016.0f', place + 4503599627370496) .. '\0' .. id)
    redis.call('ZADD', arrivals, 'LT', string.format('%.0f', place), line)
end
-- end

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

local specs, ready, later, soonest, keeps = {}, {}, {}, nil, false
for i = 1, count do
    local id, spec, options = ids[i], ARGV[width * (i - 1) + first + 1], delayed and ARGV[3 * i + 2] or ''
    local stored = known[i] or seen[id]
    local earlier, fingerprint
    if stored then earlier, fingerprint = id, without_time(stored) == without_time(spec) and '-' or '!'
    elseif repeated and was_removed(id, spec) then earlier, fingerprint = id, '-' end
    local priority, lifo, delay, under = 0, false, 0, ''
    if options ~= '' and not earlier then
        local head, lines, limited, weight = string.match(options, '^([^\n\v]*)\n?([^\v]*)\v?([^\v]*)\v?(.*)$')
        under = limited
        local p, l, d = string.match(head, '^(%S+) (%S+) (%S+)$')
        local due = string.match(d, '^=(%d+)$')
        priority, lifo, delay = tonumber(p), l == '1', due and math.max(0, tonumber(due) - now) or tonumber(d)
        local names = {}
        for ttl, print, key in string.gmatch(lines, '(%S+) (%S+) ([^\n]+)') do
            names[#names + 1] = { key, tonumber(ttl), print }
            if not earlier then earlier, fingerprint = holder(key) end
        end
        -- A delayed job is not held yet.
        if not earlier and delay <= 0 and is_full(under) then earlier, fingerprint = '', 'full' end
        if not earlier and #names > 0 then
            local column = {}
            for _, name in ipairs(names) do
                -- The tab marks a key with a ttl. The ttl runs from now on, and does not end with the job.
                if name[3] == '-' then column[#column + 1] = name[2] >= 0 and '\t' .. name[1] or name[1] end
                redis.call('HSET', unique, name[1], id .. ' ' .. name[3])
                if name[2] >= 0 then
                    redis.call('ZADD', unique_until, now + name[2], name[1])
                else
                    redis.call('ZREM', unique_until, name[1])
                end
            end
            if #column > 0 then redis.call('HSET', keys, id, table.concat(column, '\n')) end
            -- Add the job now, so that a second job with the same key in this batch finds the holder of the key.
            redis.call('HSET', jobs, id, spec)
            if under ~= '' and delay <= 0 then redis.call('ZADD', held, 0, id)
            elseif delay > 0 then redis.call('ZADD', delayed, now + delay, id) else redis.call('ZADD', waiting, 0, id) end
        end
        if not earlier and (priority ~= 0 or lifo) then
            redis.call('HSET', priorities, id, lifo and p .. 'L' or p)
        end
        if not earlier and (under ~= '' or weight ~= '') then
            if under ~= '' then redis.call('HSET', limits, id, under) end
            if weight ~= '' then redis.call('HSET', weights, id, weight) end
            -- From now on claims come with the keys of limits.
            redis.call('HSET', meta, 'limited', 1)
        end
    end
    if earlier then
        local n = #refused
        refused[n + 1], refused[n + 2], refused[n + 3] = i, earlier, fingerprint
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
            local place = priority * SPAN + MIDDLE + (lifo and -turn('lifo', 1) or fifo + i)
            if under ~= '' then
                hold(id, under, place)
                keeps = true
            else
                ready[n + 1], ready[n + 2] = format('%d', place), id
            end
        end
    end
end
if #specs > 0 then redis.call('HSET', jobs, unpack(specs)) end
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
