#!lua flags=allow-oom
-- aging: sets how much waiting a step of priority is worth, and gives the jobs that wait their places in that order.
-- KEYS meta waiting held held_by limits priorities arrivals undecided wake lines open_lines full_lines turns
-- ARGV now, aging (ms; 0: priorities are absolute), declare (1: only if no value was ever set), most (how many jobs may wait at most)
-- RETURNS the value that is set now (ms); how many jobs wait, if these are too many for a change (nothing changed), else 0
-- Without aging, places count jobs. With aging they are times, and the jobs that wait count as enqueued now.
local meta, waiting, held, held_by, limits, priorities, arrivals, undecided, wake, lines, open_lines, full_lines, turns = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local SPAN, MIDDLE, format = 4398046511104, 2199023255552, string.format
-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

-- shared: counted
-- What operators set was changed in this partition. See settings.lua. A damaged count starts again.
local function counted()
    if type(redis.pcall('HINCRBY', meta, 'changes', 1)) == 'table' then redis.call('HSET', meta, 'changes', 1) end
end
-- end

local text = redis.call('HGET', meta, 'aging')
local before, wanted = aging_of(text), tonumber(ARGV[2])
local stored = text and before
if stored and (ARGV[3] == '1' or stored == wanted) then return { stored, 0 } end
local number = redis.call('ZCARD', waiting) + redis.call('ZCARD', held)
if wanted ~= before and number > tonumber(ARGV[4]) then return { before, number } end
redis.call('HSET', meta, 'aging', format('%.0f', wanted))
counted()
if wanted == before then return { wanted, 0 } end

-- shared: hold
-- A job with limits or a group waits in held until admit finds room under all of its keys. Its line is the row of its group and keys.
local function hold(id, line, place)
    redis.call('ZADD', held, string.format('%.0f', place), id)
    redis.call('ZADD', held_by, 0, line .. '\0' .. string.format('%016.0f', place + 4503599627370496) .. '\0' .. id)
    redis.call('ZADD', arrivals, 'LT', string.format('%.0f', place), line)
end
-- end

-- shared: unhold
-- Take a job out of held. Returns its place, or nil if it is not held.
local function unhold(id)
    local place = redis.call('ZSCORE', held, id)
    if not place then return nil end
    redis.call('ZREM', held, id)
    local at = string.format('%016.0f', tonumber(place) + 4503599627370496)
    redis.call('ZREM', held_by, (redis.call('HGET', limits, id) or '') .. '\0' .. at .. '\0' .. id)
    return tonumber(place)
end
-- end

-- The jobs that wait, in the order in which they came. Those at the front have negative numbers.
local jobs, rank = {}, 0
for _, set in ipairs({ waiting, held }) do
    local found = redis.call('ZRANGE', set, 0, -1, 'WITHSCORES')
    for i = 1, #found, 2 do
        local priority = tonumber(string.match(redis.call('HGET', priorities, found[i]) or '', '^%-?%d+')) or 0
        local score = tonumber(found[i + 1])
        local own = before > 0 and score - MIDDLE - priority * 1000 * before or score % SPAN - MIDDLE
        jobs[#jobs + 1] = { id = found[i], set = set, priority = priority, number = own }
    end
end
table.sort(jobs, function(a, b) return a.number < b.number or a.number == b.number and a.id < b.id end)
-- The members of these have places too. admit makes them anew of the arrivals.
redis.call('UNLINK', lines, open_lines, full_lines, turns, arrivals)
for _, job in ipairs(jobs) do
    local own = job.number
    if own > 0 and (before == 0 or wanted == 0) then
        rank = rank + 1
        own = wanted > 0 and SPAN + 1000 * now - #jobs + rank or rank
    end
    local score = job.priority * (wanted > 0 and 1000 * wanted or SPAN) + MIDDLE + own
    if job.set == waiting then
        redis.call('ZADD', waiting, format('%.0f', score), job.id)
    else
        unhold(job.id)
        hold(job.id, redis.call('HGET', limits, job.id) or '', score)
        redis.call('ZADD', undecided, 'XX', format('%.0f', score), job.id)
    end
end
-- The numbers of new jobs and of arrivals are differences to `fifo`, and stay the same.
local facts = redis.call('HMGET', meta, 'fifo', 'moved', 'later')
local fifo = tonumber(facts[1]) or 0
local counted = wanted == 0 and math.max(1, rank) or before == 0 and SPAN + fifo or fifo
redis.call('HSET', meta, 'fifo', format('%.0f', counted), 'moved', format('%.0f', (tonumber(facts[2]) or 0) + counted - fifo),
    'later', format('%.0f', (tonumber(facts[3]) or 0) + counted - fifo))
if wanted == 0 then redis.call('HDEL', meta, 'aged')
elseif before == 0 then redis.call('HSET', meta, 'aged', format('%.0f', SPAN + 1000 * now)) end
redis.call('HDEL', meta, 'planned', 'rebase')
if number > 0 then redis.call('ZADD', wake, 0, 't') end
return { wanted, 0 }
