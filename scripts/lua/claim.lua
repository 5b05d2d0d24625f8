#!lua flags=allow-oom
-- claim: moves the first jobs of waiting to active, and gives the worker a lease on them with a new fence.
-- KEYS waiting active jobs leases attempts delayed meta wake claims; limits weights admitted unspent spent debts rules full_lines reopens openings arrivals turns control held held_by closed keys running start_by end_by events
--   Leave out the keys after the semicolon until a reply says that the queue has limits.
-- ARGV now, want (free slots of the worker), lease ms, worker, lane, request, repeated (1: the reply to this request may have been lost),
--   more (1: the worker could take more than `want`, and claims again by itself), bytes of specs after which the claim stops,
--   slots that the worker has in all; if it reserves slots: the priority below which jobs are urgent, how many slots the others may
--   take now, how many slots the others may take in all (with all KEYS)
-- RETURNS {} when nothing is waiting; "limits" when the queue has limits, or tells all events, and the keys for that are left out (nothing
--   changed); "late" when the first job did not start in time (lapse ends it); else token, now, ids, specs, charged attempts ({} when all are 0), and
--   only if the queue is closed, its own limits allowed fewer jobs than `want`, or the next job does not fit into the free slots: ms
--   until the next one may start (-1: when a job ends; '' if nothing limits this claim); and only if jobs have weights: their rows;
--   and only if the worker reserves slots: how many of the jobs are urgent
--   token: "fence worker". The holder of this token holds the lease. Without ids it says why nothing could be claimed: paused, closed,
--   limited (the queue's own rule) or slots (the next job does not fit into the free ones). A repeated request returns the recorded answer.
--   A request that is executed after its own repetition, or after a later request of its lane, returns {} and changes nothing.
local waiting, active, jobs, leases, attempts, delayed, meta, wake, claims, limits, weights, admitted, unspent, spent, debts, rules, full_lines, reopens, openings, arrivals, turns, control, held, held_by, closed, keys, running, start_by, end_by, events = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local want, lease, worker, lane, request = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]

-- shared: fence
-- A fence only grows. A damaged one, which cannot grow as a double, starts again at the clock.
local function next_fence(last)
    local fence = math.max((tonumber(last) or 0) + 1, now * 1000)
    return string.format('%.0f', fence < 9007199254740992 and fence or now * 1000)
end
-- end

local function charged(ids)
    return redis.call('EXISTS', attempts) == 1 and redis.call('HMGET', attempts, unpack(ids)) or {}
end

-- A claim can be executed late: a frozen server may read the repetition on a new connection before the original on the old
-- one. No worker receives the reply to the original, so the jobs that it leased would wait until their leases run out.
local record = redis.call('HGET', claims, lane)
local last = record and tonumber(string.match(record, '^%d+')) or -1
local repeated = ARGV[7] == '1'
if last > tonumber(request) or last == tonumber(request) and not repeated then return {} end
if last == tonumber(request) then
    local token, list = string.match(record, '^%d+ (%S+ %S+) (.*)$')
    if not token then return {} end
    local ids, held = {}, {}
    for id in string.gmatch(list, '%S+') do ids[#ids + 1] = id end
    for i, lease_token in ipairs(redis.call('HMGET', leases, unpack(ids))) do
        if lease_token == token then held[#held + 1] = ids[i] end
    end
    if #held == 0 then return {} end
    local rows = limits and redis.call('EXISTS', weights) == 1 and redis.call('HMGET', weights, unpack(held)) or nil
    return { token, now, held, redis.call('HMGET', jobs, unpack(held)), charged(held), rows and '', rows }
end

-- Record a repetition before looking for jobs. Then a late original is refused even if no job is waiting now.
if repeated then redis.call('HSET', claims, lane, request) end
local facts = redis.call('HMGET', meta, 'paused', 'fence', 'limited', 'rule', 'closed', 'running', 'events')
if want < 1 then return {} end
if facts[1] then return { 'paused', now, {}, {}, {} } end
if facts[5] then
    -- A handler or an operator has closed the queue until this time.
    -- A damaged time counts as past.
    local till = tonumber(facts[5]) or 0
    if till > now and till < now + 1e12 then return { 'closed', now, {}, {}, {}, math.ceil(till - now) } end
    redis.call('HDEL', meta, 'closed')
end
local told = facts[7] == 'all'
if (facts[3] or told) and not limits then return { 'limits' } end
-- Do not use ZPOPMIN. It formats the scores as text, which is not needed here and costs more than finding the head twice.
local ids = redis.call('ZRANGE', waiting, 0, want - 1)
if #ids == 0 then return {} end
-- Read in growing steps and stop at the bound. The sizes are unknown, and 125 jobs of 1 MB would block Redis for half a second.
local specs, bytes, count = {}, 0, 0
while count < #ids and bytes <= tonumber(ARGV[9]) do
    local step = redis.call('HMGET', jobs, unpack(ids, count + 1, math.min(4 * count + 2, #ids)))
    for i = 1, #step do
        specs[count + i] = step[i]
        bytes = bytes + #(step[i] or '')
    end
    count = count + #step
end
local enough = count == want or count < #ids
local limited_ms, weighed, reserved
-- What follows is only defined in a queue with limits, because each function costs a claim as much as a call. It is not
-- indented, because shared pieces are the same in each script.
if limits then
local format, match, gmatch, min, max = string.format, string.match, string.gmatch, math.min, math.max

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

-- How many slots and how many tokens the queue's own rule has now; and if it has no token, when one is free (unix ms).
local function allowed(rule)
    local places, most, free = math.huge, math.huge, nil
    if rule.concurrency then
        places = rule.concurrency - redis.call('ZCARD', active) - redis.call('ZLEXCOUNT', admitted, from('queue'), to('queue'))
    end
    for i, band in ipairs(rule.bands) do
        local arrival = arrival_of('queue', i, band)
        most = math.min(most, math.floor((band.tolerance - (arrival - now) + 0.001) / band.interval) + 1)
        if arrival - band.tolerance > now then free = max(free or 0, arrival - band.tolerance) end
    end
    return places, most, free
end

-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

local function ms_until(free) return free and max(1, math.ceil(free - now)) or -1 end

-- shared: costs
-- A row of weights has the slots of the job, then a line "unit estimate" for each cost, and behind it what the run really cost, once
-- its handler has said so. A job without a cost in a unit costs 1. Returns the estimate, and the real cost.
local function cost_of(row, unit)
    local estimate, real = match((row or '') .. '\n', '\n' .. unit .. ' (%d+) ?(%d*)\n')
    return tonumber(estimate) or 1, tonumber(real)
end
-- end

-- The jobs start now, so they spend their tokens. This is GCRA: each token moves the theoretical arrival time of a band on by its
-- interval. What an earlier run of a job really cost does not count for this one. A key that waits for these jobs opens again when its next token is free.
local function spend(ids, rows)
    local taken, order, members = {}, {}, {}
    for i, row in ipairs(rows) do
        if row and match(row, '\n%S+ %d+ %d') then
            rows[i] = string.gsub(row, '(\n%S+ %d+) %d+', '%1')
            redis.call('HSET', weights, ids[i], rows[i])
        end
    end
    for i, names in ipairs(redis.call('HMGET', limits, unpack(ids))) do
        -- The first line is the group, which has no rate.
        if names and string.byte(names) == 64 then names = match(names, '\n(.*)$') end
        for key in gmatch(names or '', '[^\n]+') do
            -- The rule may have had a rate when the job was admitted.
            members[#members + 1] = key .. '\0' .. ids[i]
            if rule_of(key).bands[1] then
                if not taken[key] then order[#order + 1], taken[key] = key, {} end
                for n, band in ipairs(rule_of(key).bands) do
                    taken[key][n] = (taken[key][n] or 0) + (band.unit and cost_of(rows[i], band.unit) or 1)
                end
            end
        end
    end
    if #members == 0 then return end
    redis.call('ZREM', unspent, unpack(members))
    for _, key in ipairs(order) do
        local free = now
        for i, band in ipairs(rule_of(key).bands) do
            local field = key .. '\0' .. i
            local arrival = arrival_of(key, i, band) + taken[key][i] * band.interval
            if band.unit then redis.call('HSET', debts, field, format('%.0f %.17g', now, band.interval)) end
            redis.call('ZADD', spent, format('%.4f', arrival), field)
            free = max(free, arrival - band.tolerance)
        end
        if #redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1) > 0
            and not redis.call('ZSCORE', openings, key) and not redis.call('ZSCORE', reopens, key) then
            redis.call('ZADD', reopens, format('%.4f', free), key)
            redis.call('ZADD', wake, 0, 't')
        end
    end
end

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

-- A key may have been closed after these jobs were admitted. They go back to held, and admit waits until the key opens.
local function take_back()
    local known, back, kept = {}, {}, 0
    for i, names in ipairs(redis.call('HMGET', limits, unpack(ids, 1, count))) do
        local open = true
        for key in gmatch(names or '', '[^\n]+') do
            if not known[key] then known[key] = tonumber(redis.call('ZSCORE', closed, key)) or 0 end
            open = open and known[key] <= now
            -- A breaker that is half-open lets one job through. The others were admitted before it opened.
            if open and known[key] > 0 and string.byte(key) == 33 then
                local own = key .. '\0' .. ids[i]
                open = redis.call('ZLEXCOUNT', admitted, from(key), to(key)) == redis.call('ZLEXCOUNT', admitted, '[' .. own, to(own))
            end
        end
        if open then
            kept = kept + 1
            ids[kept], specs[kept] = ids[i], specs[i]
        else
            local id = ids[i]
            back[#back + 1] = id
            hold(id, names, tonumber(redis.call('ZSCORE', waiting, id)))
            redis.call('ZREM', waiting, id)
            for key in gmatch(names, '[^\n]+') do redis.call('ZREM', unspent, key .. '\0' .. id) end
        end
    end
    if #back == 0 then return end
    free(back)
    for i = #ids, kept + 1, -1 do ids[i], specs[i] = nil, nil end
    count, enough = kept, false
    -- Other jobs may wait behind these: claim again.
    redis.call('ZADD', wake, 0, 't')
end

-- Notes which keys these jobs have, for enqueues whose key is only held by running jobs. Scripts that end jobs do not remove what
-- was noted: an enqueue sees that the job is not active. So that nothing grows, look at two earlier ones for each new one.
local function note_keys()
    local members, ended = {}, {}
    for i, names in ipairs(redis.call('HMGET', keys, unpack(ids))) do
        local name = match(names or '', '([^\t\n]+)$')
        if name then members[#members + 1], members[#members + 2] = 0, name .. '\0' .. ids[i] end
    end
    if #members == 0 then return end
    for _, member in ipairs(redis.call('ZRANDMEMBER', running, #members)) do
        if not redis.call('ZSCORE', active, match(member, '%z(.*)$')) then ended[#ended + 1] = member end
    end
    if #ended > 0 then redis.call('ZREM', running, unpack(ended)) end
    redis.call('ZADD', running, unpack(members))
end

-- A job that is late never starts. Only the jobs before the first late one are claimed, until lapse has ended it.
for _, set in ipairs(redis.call('EXISTS', start_by, end_by) > 0 and { start_by, end_by } or {}) do
    for i, by in ipairs(redis.call('ZMSCORE', set, unpack(ids, 1, count))) do
        if by and math.abs(tonumber(by)) <= now then
            if i == 1 then return { 'late' } end
            count, enough = i - 1, false
            -- Other jobs may wait behind it: claim again.
            redis.call('ZADD', wake, 0, 't')
            break
        end
    end
end
if redis.call('EXISTS', closed) == 1 and redis.call('EXISTS', limits) == 1 then take_back() end
if count == 0 then return {} end
local rule, less, places, tokens = facts[4] and parse(facts[4]), false, math.huge, math.huge
if rule then
    local free
    places, tokens, free = allowed(rule)
    local most = math.min(places, tokens)
    if most < 1 then return { 'limited', now, {}, {}, {}, ms_until(free) } end
    if most < want then count, enough, less = math.min(count, most), false, true end
end
weighed = redis.call('EXISTS', weights) == 1 and redis.call('HMGET', weights, unpack(ids, 1, count)) or nil
local urgent, border
if ARGV[11] then
    local facts_of = redis.call('HMGET', meta, 'aging', 'aged')
    local aging, below = aging_of(facts_of[1]), tonumber(ARGV[11])
    if aging > 0 then
        -- Jobs that have waited count as urgent too, once they go before a new job with such a priority.
        border = 2199023255552 + max(tonumber(facts_of[2]) or 0, 4398046511104 + 1000 * now) + (below - 1) * 1000 * aging
        urgent = redis.call('ZCOUNT', waiting, '-inf', format('%.0f', border))
    else
        urgent = redis.call('ZCOUNT', waiting, '-inf', format('(%.0f', below * 4398046511104))
    end
end
if weighed or urgent then
    -- A job may take several slots. The first one that does not fit keeps its turn: later jobs do not overtake it, or small ones
    -- would do so for ever. A job that needs more slots than there are takes all of them, so it runs alone.
    local size, used, under, taken, stop, more = tonumber(ARGV[10]), 0, 0, 0, nil, {}
    local later = -1
    local others, size_of_others = tonumber(ARGV[12]) or want, tonumber(ARGV[13]) or size
    for i = 1, count do
        local slots, waits = weighed and tonumber(match(weighed[i] or '', '^%d+')) or 1, not urgent or i > urgent
        local need, needs_under = math.min(slots, waits and size_of_others or size), math.min(slots, rule and rule.concurrency or 0)
        local too_many = used + need > want or waits and taken + need > others
        if too_many or under + needs_under > places then
            stop, less = i, less or under + needs_under > places
            -- With aging it becomes urgent some time, and may take the slots that are reserved.
            if border and waits then later = max(1, math.ceil((tonumber(redis.call('ZSCORE', waiting, ids[i])) - border) / 1000)) end
            -- Other workers may have more free slots.
            if too_many and ARGV[8] ~= '1' then redis.call('PUBLISH', control, 'room ' .. need) end
            break
        end
        used, under, taken = used + need, under + needs_under, waits and taken + need or taken
        for n = 2, slots do more[#more + 1], more[#more + 2] = 0, 'queue\0' .. ids[i] .. '\0' .. n end
    end
    if stop == 1 then return { 'slots', now, {}, {}, {}, later } end
    if stop then count, enough, limited_ms = stop - 1, false, later end
    enough = enough or not less and used == want
    for i = weighed and #weighed or 0, count + 1, -1 do weighed[i] = nil end
    reserved = urgent and math.min(urgent, count)
    if #more > 0 then redis.call('ZADD', admitted, unpack(more)) end
end
for i = #ids, count + 1, -1 do ids[i], specs[i] = nil, nil end
if redis.call('EXISTS', limits) == 1 then spend(ids, weighed or {}) end
if facts[6] then note_keys() end
if rule then
    for i, band in ipairs(rule.bands) do
        local arrival = arrival_of('queue', i, band) + count * band.interval
        redis.call('ZADD', spent, format('%.4f', arrival), 'queue\0' .. i)
    end
    if less then
        local _, _, free = allowed(rule)
        limited_ms = ms_until(free)
    end
end
else
    for i = #ids, count + 1, -1 do ids[i] = nil end
end
local fence = next_fence(facts[2])
local token = fence .. ' ' .. worker
-- Convert the number to text once here. Otherwise redis.call() converts it for every job.
local expiry = string.format('%.0f', now + lease)
local expiries, tokens = {}, {}
for i, id in ipairs(ids) do
    expiries[2 * i - 1], expiries[2 * i] = expiry, id
    tokens[2 * i - 1], tokens[2 * i] = id, token
end
redis.call('HSET', meta, 'fence', fence)
redis.call('ZREMRANGEBYRANK', waiting, 0, count - 1)
if count > 16 then
    -- Redis stores a small set or hash as a list, and searches it from the start for each member. A member that is too long
    -- for a list makes Redis convert it into a table. See decision 20.
    local long = string.rep('x', 65)
    redis.call('ZADD', active, 0, long, unpack(expiries))
    redis.call('ZREM', active, long)
    redis.call('HSET', leases, long, long, unpack(tokens))
    redis.call('HDEL', leases, long)
else
    redis.call('ZADD', active, unpack(expiries))
    redis.call('HSET', leases, unpack(tokens))
end
redis.call('HSET', claims, lane, request .. ' ' .. token .. ' ' .. table.concat(ids, ' '))
if told then redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'started', table.concat(ids, ' ')) end
-- A worker without free slots does not wait for the wake token. So this claim puts the token back, and another worker
-- takes the remaining jobs or waits for the next due time.
if enough and ARGV[8] ~= '1' and (redis.call('EXISTS', waiting) == 1 or redis.call('EXISTS', delayed) == 1
    or limits and redis.call('EXISTS', openings, arrivals, turns) > 0) then
    redis.call('ZADD', wake, 0, 't')
end
return { token, now, ids, specs, charged(ids), limited_ms or (weighed or reserved) and '' or nil, weighed or reserved and {} or nil, reserved }
