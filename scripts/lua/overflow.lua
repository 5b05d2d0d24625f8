#!lua flags=allow-oom
-- overflow: decides what happens to jobs that are due for the first time and count under a rule with an action for jobs over its
--   limit. Without room such a job ends as dropped, or the oldest job of its key that has not started, or that runs, ends for it.
-- KEYS waiting active delayed blocked failed held held_by undecided seats jobs limits weights admitted unspent spent debts rules closed openings leases attempts errors expires events metrics control keys unique wake requests answers meta priorities
-- ARGV now, page (the largest number of jobs that a call without ids decides about); then ids
-- RETURNS per id "dropped"; "replaced_oldest" or "killed_running" (a job ended for it); or '' (nothing ended). The answer of a
--   decided job is the same for two minutes.
-- Each job is decided about once. Afterwards it has seats under these keys while it is held: jobs that are in waiting or active are
-- counted in `admitted`, and the seats are those that admit will give to held jobs.
local waiting, active, delayed, blocked, failed, held, held_by, undecided, seats, jobs, limits, weights, admitted, unspent, spent, debts, rules, closed, openings, leases, attempts, errors, expires, events, metrics, control, keys, unique, wake, requests, answers, meta, priorities = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local format, match, gmatch, sub, min, max, floor = string.format, string.match, string.gmatch, string.sub, math.min, math.max, math.floor

-- shared: lines of a key
-- The members "key NUL ..." of a sorted set with equal scores.
local function from(key) return '[' .. key .. '\0' end
local function to(key) return '(' .. key .. '\1' end
-- end

-- shared: rule
-- The rule of a key is named before its first colon. A row has two lines: an operator's rule, and the one that code declares.
-- A rule is "concurrency count/per/burst/unit ..." with `-` for no concurrency, and `per` in ms. A band without a unit counts jobs. The
-- operator's rule takes precedence.
local function parse(text)
    local rule = { concurrency = tonumber(match(text, '^%d+')), bands = {} }
    for count, per, burst, unit in gmatch(text, ' (%d+)/(%d+)/(%d+)/?([%w_]*)') do
        local interval = tonumber(per) / tonumber(count)
        -- Pass over a damaged band: it would hold its jobs for ever.
        if interval > 0 and interval < 1e15 and tonumber(burst) >= 1 and tonumber(burst) < 1e15 then
            rule.bands[#rule.bands + 1] = {
                interval = interval, tolerance = (tonumber(burst) - 1) * interval, burst = tonumber(burst), unit = unit ~= '' and unit or nil,
            }
        end
    end
    return rule
end

local parsed = {}
local function rule_of(key)
    local name = match(key, '^[^:]*')
    if not parsed[name] then
        local set, declared = match(redis.call('HGET', rules, name) or '', '^([^\n]*)\n?(.*)$')
        parsed[name] = parse(set ~= '' and set or declared)
    end
    return parsed[name]
end
-- end

-- shared: arrival
-- The theoretical arrival time of a band. If it is further away than a full burst, the rule was changed or the clock was set back
-- since it was stored. Then one token is free. A band with a unit may owe more than a burst, because a job may cost more than that.
-- So `debts` has when the time was stored, and the interval then: what is owed is paid back at the interval of now.
local function arrival_of(key, i, band)
    local stored = tonumber(redis.call('ZSCORE', spent, key .. '\0' .. i) or 0)
    if band.unit and stored > now then
        local at, interval = match(redis.call('HGET', debts, key .. '\0' .. i) or '', '^(%S+) (%S+)$')
        at, interval = tonumber(at), tonumber(interval)
        if at and interval and interval > 0 then
            local arrival = max(now, min(at, now) + (stored - at) / interval * band.interval)
            if at > now then
                -- The clock was set back. Count from now on.
                redis.call('ZADD', spent, string.format('%.4f', arrival), key .. '\0' .. i)
                redis.call('HSET', debts, key .. '\0' .. i, string.format('%.0f %.17g', now, band.interval))
            end
            return arrival
        end
    end
    return stored > now + band.burst * band.interval + 1 and now + band.tolerance or max(now, stored)
end
-- end

-- shared: costs
-- A row of weights has the slots of the job, then a line "unit estimate" for each cost, and behind it what the run really cost, once
-- its handler has said so. A job without a cost in a unit costs 1. Returns the estimate, and the real cost.
local function cost_of(row, unit)
    local estimate, real = match((row or '') .. '\n', '\n' .. unit .. ' (%d+) ?(%d*)\n')
    return tonumber(estimate) or 1, tonumber(real)
end
-- end

-- shared: add
-- A damaged count starts again. Otherwise it would refuse the outcomes of all jobs.
local function add(field, n)
    if type(redis.pcall('HINCRBY', metrics, field, n)) == 'table' then redis.call('HSET', metrics, field, n) end
end
-- end

-- shared: count
local function count(what, n)
    add(what, n)
    add('m:' .. string.format('%.0f', math.floor(now / 60000)) .. ':' .. what, n)
end
-- end

-- shared: error column
local function add_error(id, record)
    local text, from = redis.call('HGET', errors, id), 1
    text = text and text .. '\n' .. record or record
    -- The column is bounded. Drop the oldest attempts first.
    while #text - from >= 65536 do
        local line = string.find(text, '\n', from, true)
        if not line then break end
        from = line + 1
    end
    redis.call('HSET', errors, id, string.sub(text, from))
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

-- shared: give back
-- Jobs that leave waiting or active without a worker give back their places under their limit keys, and the tokens that they have
-- not spent. A worker is woken, and its admit looks at these keys first.
local function give_back(list)
    if #list == 0 or redis.call('EXISTS', limits, weights) == 0 then return end
    local rows = redis.call('HMGET', weights, unpack(list))
    for i, names in ipairs(redis.call('HMGET', limits, unpack(list))) do
        if rows[i] then free_slots(list[i], rows[i], names) end
        for key in string.gmatch(names or '', '[^\n]+') do
            redis.call('ZREM', admitted, key .. '\0' .. list[i])
            redis.call('ZREM', unspent, key .. '\0' .. list[i])
            redis.call('ZADD', openings, '-inf', key)
            redis.call('ZADD', wake, 0, 't')
        end
    end
end
-- end

-- shared: follow
-- A job that waits in `blocked` for the end of another one with its key (keep_last) is due when that one has ended. forward then
-- gives it its place. The row of the key names both jobs.
local function follow(list)
    if #list == 0 or redis.call('EXISTS', blocked) == 0 then return end
    for i, names in ipairs(redis.call('HMGET', keys, unpack(list))) do
        for key in string.gmatch(names and names .. '\n' or '', '([^\t\n]+)\n') do
            local id, other = string.match(redis.call('HGET', unique, key) or '', '^(%S+) %S+ %S+ (%S+)$')
            local due = other == list[i] and redis.call('ZSCORE', blocked, id)
            if due then
                redis.call('ZREM', blocked, id)
                redis.call('ZADD', delayed, math.max(now, tonumber(due)), id)
                redis.call('ZADD', wake, 0, 't')
            end
        end
    end
end
-- end

-- What happens to a job over the limit of a rule is the last word of its text.
local actions = {}
local function action_of(key)
    local name = match(key, '^[^:]*')
    if not actions[name] then
        local set, declared = match(redis.call('HGET', rules, name) or '', '^([^\n]*)\n?(.*)$')
        actions[name] = match(set ~= '' and set or declared, ' (%l[%l_]*)$') or 'wait'
    end
    return actions[name]
end

local function number(set, key) return redis.call('ZLEXCOUNT', set, from(key), to(key)) end

-- The jobs that are members of a key in `admitted` or `seats`: id -> how many slots. It reads the first pages only.
local function members(set, key, pages)
    local found, start = {}, from(key)
    for _ = 1, pages do
        local page = redis.call('ZRANGE', set, start, to(key), 'BYLEX', 'LIMIT', 0, 1000)
        for _, member in ipairs(page) do
            local id = match(member, '^[^%z]*', #key + 2)
            found[id] = (found[id] or 0) + 1
        end
        if #page < 1000 then break end
        start = '(' .. page[1000]
    end
    return found
end

local function scores(set, list)
    local found = {}
    for at = 1, #list, 1000 do
        local page = { unpack(list, at, min(at + 999, #list)) }
        for i, score in ipairs(redis.call('ZMSCORE', set, unpack(page))) do found[page[i]] = tonumber(score) end
    end
    return found
end

-- Remove the seats of jobs that are not held any more: they were killed or removed.
local function clean(key)
    local list, gone = {}, {}
    for id in pairs(members(seats, key, 10)) do list[#list + 1] = id end
    local places = scores(held, list)
    for _, id in ipairs(list) do
        if not places[id] then gone[#gone + 1] = key .. '\0' .. id end
    end
    for _, member in ipairs(gone) do
        redis.call('ZREM', seats, member)
        redis.call('ZREMRANGEBYLEX', seats, '[' .. member .. '\0', '(' .. member .. '\1')
    end
end

-- What the jobs of a key cost that have no token yet.
local function promised(key, unit)
    local sum, list = 0, {}
    for _, set in ipairs({ unspent, seats }) do
        for id in pairs(members(set, key, 1)) do list[#list + 1] = id end
    end
    for at = 1, #list, 1000 do
        local page = { unpack(list, at, min(at + 999, #list)) }
        local rows = redis.call('HMGET', weights, unpack(page))
        for i in ipairs(page) do sum = sum + cost_of(rows[i], unit) end
    end
    return sum
end

local row
local function has_room(key, kills)
    local rule = rule_of(key)
    if not kills and (tonumber(redis.call('ZSCORE', closed, key)) or 0) > now then return false end
    local full, slots = rule.concurrency, tonumber(match(row, '^%d+')) or 1
    -- A job with more slots than the rule has places runs alone.
    if full and (full == 0 or number(admitted, key) + number(seats, key) + min(slots, full) > full) then return false end
    for i, band in ipairs(rule.bands) do
        local tokens = floor((band.tolerance - (arrival_of(key, i, band) - now) + 0.001) / band.interval) + 1
        local need = band.unit and min(cost_of(row, band.unit), band.burst) or 1
        if tokens - (band.unit and promised(key, band.unit) or number(unspent, key) + number(seats, key)) < need then return false end
    end
    return true
end

local cleaned = {}
local function fits(key, kills)
    if has_room(key, kills) then return true end
    if cleaned[key] then return false end
    cleaned[key] = true
    clean(key)
    return has_room(key, kills)
end

-- Ends a job that is held, waiting or active.
local function finish(id, type, message)
    if redis.call('ZREM', active, id) == 1 then
        local token = redis.call('HGET', leases, id)
        redis.call('HDEL', leases, id)
        local runs, since, snoozes = read_attempts(id)
        write_attempts(id, runs + 1, since, snoozes)
        redis.call('PUBLISH', control, 'kill ' .. id .. ' ' .. (token or ''))
        give_back({ id })
    elseif redis.call('ZREM', waiting, id) == 1 then
        give_back({ id })
    else
        unhold(id)
        for key in gmatch(redis.call('HGET', limits, id) or '', '[^\n]+') do
            local member = key .. '\0' .. id
            redis.call('ZREM', seats, member)
            redis.call('ZREMRANGEBYLEX', seats, '[' .. member .. '\0', '(' .. member .. '\1')
            -- Jobs that need fewer slots may wait behind this one.
            redis.call('ZADD', openings, '-inf', key)
        end
    end
    add_error(id, format('{"attempt":0,"at":%.0f,"type":"%s","message":"%s"}', now, type, message))
    redis.call('ZADD', failed, now, id)
    local retention = match(redis.call('HGET', jobs, id) or '', ',"retention":(%d+)')
    if retention then redis.call('ZADD', expires, now + tonumber(retention), id) end
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', type == 'Killed' and 'killed' or 'failed', id)
    count('failed', 1)
    follow({ id })
end

-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

-- The order in which jobs came: FIFO ones by their sequence, then LIFO ones, the last of which came first.
local SPAN, MIDDLE = 4398046511104, 2199023255552
local aging
local function age(place, id)
    if not aging then aging = aging_of(redis.call('HGET', meta, 'aging')) end
    local sequence
    if aging > 0 then
        local priority = tonumber(match(redis.call('HGET', priorities, id) or '', '^%-?%d+')) or 0
        sequence = place - priority * 1000 * aging - MIDDLE
    else
        sequence = place % SPAN - MIDDLE
    end
    return sequence > 0 and sequence or MIDDLE - sequence
end

-- The jobs of a key that can end for a new one, the oldest first: those that have not started, or those that run. They are read
-- once per call. Ids are ordered by time, so the oldest are among the first thousand. Later claims have a higher fence.
local queues = { unstarted = {}, running = {} }
local function queue_of(kind, key)
    local queue = queues[kind][key]
    if queue then return queue end
    queue = { at = 1 }
    queues[kind][key] = queue
    local list = {}
    for id in pairs(members(admitted, key, 1)) do list[#list + 1] = id end
    if kind == 'running' then
        for id in pairs(scores(active, list)) do
            queue[#queue + 1] = { tonumber(match(redis.call('HGET', leases, id) or '', '^%d+')) or 0, id }
        end
    else
        for id in pairs(members(seats, key, 1)) do list[#list + 1] = id end
        for _, set in ipairs({ held, waiting }) do
            for id, place in pairs(scores(set, list)) do queue[#queue + 1] = { age(place, id), id } end
        end
    end
    table.sort(queue, function(a, b) return a[1] < b[1] or a[1] == b[1] and a[2] < b[2] end)
    return queue
end

-- Takes the oldest of them, unless it has ended meanwhile.
local function oldest(kind, key)
    local queue = queue_of(kind, key)
    while queue[queue.at] do
        local id = queue[queue.at][2]
        queue.at = queue.at + 1
        if kind == 'running' and redis.call('ZSCORE', active, id)
            or kind == 'unstarted' and (redis.call('ZSCORE', held, id) or redis.call('ZSCORE', waiting, id)) then return id end
    end
    return nil
end

-- A new job ends other jobs of its key until it has room. It ends 16 at most, in case that the rule was lowered by thousands.
local function make_room(key, id, action)
    local kills, done = action == 'kill_running', ''
    for _ = 1, 16 do
        if fits(key, kills) then break end
        local other = kills and oldest('running', key)
        if other then
            finish(other, 'Killed', format('killed for job %s: the rule %s kills a running job for a new one', id, match(key, '^[^:]*')))
            add('killed_running', 1)
            done = 'killed_running'
        else
            other = oldest('unstarted', key)
            if not other then break end
            finish(other, 'Replaced', format('replaced by job %s: the rule %s lets the newest job wait', id, match(key, '^[^:]*')))
            add('replaced_oldest', 1)
            if done == '' then done = 'replaced_oldest' end
        end
    end
    return done
end

local function decide(id)
    local line = redis.call('HGET', limits, id) or ''
    row = redis.call('HGET', weights, id) or '1'
    local under = {}
    for key in gmatch(line, '[^\n]+') do
        -- A group and a breaker have no rule.
        if not match(key, '^[@!]') and action_of(key) ~= 'wait' then under[#under + 1] = key end
    end
    for _, key in ipairs(under) do
        if action_of(key) == 'drop' and not fits(key) then
            finish(id, 'Dropped', format('dropped: the rule %s had no room', match(key, '^[^:]*')))
            add('dropped', 1)
            return 'dropped'
        end
    end
    local done = ''
    for _, key in ipairs(under) do
        local ended = action_of(key) ~= 'drop' and make_room(key, id, action_of(key)) or ''
        if done ~= 'killed_running' and ended ~= '' then done = ended end
    end
    for _, key in ipairs(under) do
        local member = key .. '\0' .. id
        redis.call('ZADD', seats, 0, member)
        local queue = queues.unstarted[key]
        if queue then queue[#queue + 1] = { 0, id } end
        for slot = 2, tonumber(match(row, '^%d+')) or 1 do redis.call('ZADD', seats, 0, member .. '\0' .. slot) end
    end
    return done
end

local words = {}
local function answer(id)
    local known = 'over:' .. id
    if redis.call('ZREM', undecided, id) == 0 then return (match(redis.call('HGET', answers, known) or '', '^[^\n]*')) end
    -- It may have been killed or removed meanwhile.
    local word = redis.call('ZSCORE', held, id) and decide(id) or ''
    if word ~= '' then
        -- The caller asks again if the reply is lost, and a worker may have decided before its first call.
        redis.call('HSET', answers, known, word .. '\n')
        redis.call('ZADD', requests, now, known)
        -- A dropped queue leaves answers with a time to live.
        redis.call('PERSIST', answers)
        redis.call('PERSIST', requests)
    end
    return word
end
local list = { unpack(ARGV, 3) }
if #list == 0 then list = redis.call('ZRANGE', undecided, 0, tonumber(ARGV[2]) - 1) end
for i, id in ipairs(list) do words[i] = answer(id) end
return words
