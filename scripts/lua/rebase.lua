#!lua flags=allow-oom
-- rebase: gives the jobs in waiting low places again, in the same order, before a sequence reaches the next priority.
-- KEYS waiting meta
-- ARGV page (largest number of jobs to move), bound (a sequence beyond this number is rebased)
-- RETURNS 1 if there is more to do, else 0
-- Each priority has 2^42 places, and its sequence starts in their middle. FIFO jobs count up from there. LIFO jobs and released
-- jobs count down. Both sides are rebased in the same way, from the middle outwards: the job nearest to the middle gets place 1,
-- the next one gets place 2, and so on. So the order is right at every step, and jobs that are enqueued meanwhile come after
-- those that still have their old places. The call that has nothing left to move sets the counters back.
-- `planned` of admit is one of the old places, so it is forgotten.
local waiting, meta = unpack(KEYS)
local SPAN, MIDDLE, format = 4398046511104, 2199023255552, string.format
local page, bound = tonumber(ARGV[1]), tonumber(ARGV[2])
-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

local facts = redis.call('HMGET', meta, 'fifo', 'lifo', 'rebase', 'moved', 'later', 'aging')
-- With aging the places are times, which reach no bound. A sequence that was damaged goes on behind all jobs.
if aging_of(facts[6]) > 0 then
    if not tonumber(facts[1]) or tonumber(facts[1]) <= 2199023255552 then redis.call('HSET', meta, 'fifo', '4398046511104') end
    return 0
end
if (tonumber(facts[1]) or 0) <= bound and (tonumber(facts[2]) or 0) <= bound then return 0 end

-- How far earlier calls came, per priority: "priority:jobs behind the middle:jobs in front of it".
local behind, before = {}, {}
for priority, b, f in string.gmatch(facts[3] or '', '(%-?%d+):(%d+):(%d+)') do
    behind[tonumber(priority)], before[tonumber(priority)] = tonumber(b), tonumber(f)
end

-- A damaged place may belong to no priority. It is passed over: the walk would not get beyond it.
local from, stop = format('%.0f', -1024 * SPAN), format('(%.0f', 1024 * SPAN)
while page > 0 do
    local first = redis.call('ZRANGE', waiting, from, stop, 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if not first[1] then break end
    local priority = math.floor(tonumber(first[2]) / SPAN)
    local middle = priority * SPAN + MIDDLE
    for _, side in ipairs({ { behind, 1 }, { before, -1 } }) do
        local count, sign = side[1], side[2]
        local done = count[priority] or 0
        local near, far = '(' .. format('%.0f', middle + sign * done), format('%.0f', middle + sign * (MIDDLE - 1))
        local ids
        if page <= 0 then ids = {}
        elseif sign == 1 then ids = redis.call('ZRANGE', waiting, near, far, 'BYSCORE', 'LIMIT', 0, page)
        else ids = redis.call('ZRANGE', waiting, near, far, 'BYSCORE', 'REV', 'LIMIT', 0, page) end
        for i, id in ipairs(ids) do
            redis.call('ZADD', waiting, format('%.0f', middle + sign * (done + i)), id)
        end
        count[priority] = done + #ids
        page = page - #ids
    end
    from = format('%.0f', (priority + 1) * SPAN)
end

if page > 0 then
    -- This one call has seen every job, so no job can have been enqueued behind it.
    local fifo, lifo = 0, 0
    for _, count in pairs(behind) do fifo = math.max(fifo, count) end
    for _, count in pairs(before) do lifo = math.max(lifo, count) end
    -- The numbers of new jobs and of arrivals are differences to `fifo`, and stay the same.
    local back = fifo - (tonumber(facts[1]) or 0)
    redis.call('HSET', meta, 'fifo', format('%.0f', fifo), 'lifo', format('%.0f', lifo),
        'moved', format('%.0f', (tonumber(facts[4]) or 0) + back), 'later', format('%.0f', (tonumber(facts[5]) or 0) + back))
    redis.call('HDEL', meta, 'rebase', 'planned')
    return 0
end
local state = {}
for priority, count in pairs(behind) do
    state[#state + 1] = format('%.0f:%.0f:%.0f', priority, count, before[priority] or 0)
end
redis.call('HSET', meta, 'rebase', table.concat(state, ' '))
return 1
