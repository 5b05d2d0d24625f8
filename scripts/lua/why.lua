#!lua flags=no-writes
-- why: reads what decides when a job starts: the queue, its workers, the job's place, and its limit keys.
-- KEYS waiting delayed active completed held jobs results leases priorities limits weights held_by admitted unspent spent debts rules closed breakers lines full_lines turns groups parked unserved keys unique meta workers workers_info metrics blocked failed history
-- ARGV now, alive ms (a worker counts as alive for this long after a heartbeat), id ('': only the queue), the most running jobs and
--   living workers to look at, the most lines and the most groups to look at
-- RETURNS now; the queue; the workers; the last runs; the running jobs; the job (nil if there is none); its limit keys. Each is a list:
--   queue: paused since, closed until, text of its own rule, arrivals (as for a key), waiting, delayed, active, held and parked jobs,
--     extra slots of running jobs, when the first delayed job is due, groups whose turns come (-1: the queue has no groups)
--   workers: how many are alive, when the last one was seen, flat pairs of the living ones: info, last seen
--   runs: flat pairs type, ms of the last completed jobs; a list of flat pairs: bits of a time in us, runs of this hour and the last one
--   running: when each one was claimed (unix ms)
--   job: state, score, jobs of waiting before it, those of them with a more urgent priority, held jobs before it that wait for no
--     other limit key, held jobs of its line before it, held jobs of its group before it, turns before that of its group (-1: it has none), about how
--     many jobs of other groups have their turns before it, weight and pause of its group ('': none),
--     its group, its slots and costs, whether it is parked (0 or 1), row of its deduplication key, when the
--     other job that this row names was claimed, how much waiting a step of priority is worth (ms; 0: priorities are absolute,
--     else no job of waiting counts as more urgent)
--   keys, each one: key, text of its rule, places that are taken, places whose tokens are not spent, closed until, jobs before it,
--     1 if the job's line waits for this key, row of the breaker, arrivals (pairs of a band's spent and debts), and when each of its
--     running jobs was claimed
-- It counts ranges of sorted sets, and walks over no backlog. It takes lines and groups that it does not look at to be like those
-- that it looks at. Missing values are nil.
local waiting, delayed, active, completed, held, jobs, results, leases, priorities, limits, weights, held_by, admitted, unspent, spent, debts, rules, closed, breakers, lines, full_lines, turns, groups, parked, unserved, keys, unique, meta, workers, workers_info, metrics, blocked, failed, history = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local alive, id, most, looks = now - tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local SPAN, LOWEST = 4398046511104, 4503599627370496
local LAST_RUNS, LARGE = 32, 16384
local format, match, gmatch, sub, floor, min = string.format, string.match, string.gmatch, string.sub, math.floor, math.min

-- shared: lines of a key
-- The members "key NUL ..." of a sorted set with equal scores.
local function from(key) return '[' .. key .. '\0' end
local function to(key) return '(' .. key .. '\1' end
-- end

local function number(set, first, last) return redis.call('ZLEXCOUNT', set, first, last) end

-- When each of these jobs was claimed, if it runs. A fence is the time of the claim in us, unless the clock was set back.
local function claimed(ids)
    local times = {}
    for _, token in ipairs(#ids > 0 and redis.call('HMGET', leases, unpack(ids)) or {}) do
        local fence = token and tonumber(match(token, '^%d+'))
        if fence then times[#times + 1] = floor(fence / 1000) end
    end
    return times
end

-- The times of GCRA as they are stored. The caller knows what they mean.
local function arrivals_of(key, text)
    local pairs_of, _, bands = {}, string.gsub(text, ' %d', '')
    for band = 1, min(bands, 8) do
        local field = key .. '\0' .. band
        pairs_of[2 * band - 1] = redis.call('ZSCORE', spent, field)
        pairs_of[2 * band] = redis.call('HGET', debts, field)
    end
    return pairs_of
end

local function read_queue()
    local facts = redis.call('HMGET', meta, 'paused', 'closed', 'rule', 'virtual')
    local due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    return {
        facts[1], facts[2], facts[3], arrivals_of('queue', facts[3] or ''),
        redis.call('ZCARD', waiting), redis.call('ZCARD', delayed), redis.call('ZCARD', active), redis.call('ZCARD', held),
        redis.call('ZCARD', parked), number(admitted, from('queue'), to('queue')), due[2] or false,
        facts[4] and redis.call('ZCARD', turns) or -1,
    }
end

local function read_workers()
    local last = redis.call('ZRANGE', workers, 0, 0, 'REV', 'WITHSCORES')
    local reply = { redis.call('ZCOUNT', workers, alive, '+inf'), last[2] or false }
    local found = redis.call('ZRANGE', workers, '+inf', alive, 'BYSCORE', 'REV', 'LIMIT', 0, most, 'WITHSCORES')
    for i = 1, #found, 2 do
        reply[#reply + 1], reply[#reply + 2] = redis.call('HGET', workers_info, found[i]), found[i + 1]
    end
    return reply
end

-- Large rows would take long to read, so such a job is left out.
local function small(column, one)
    return redis.call('HSTRLEN', column, one) <= LARGE and redis.call('HGET', column, one) or ''
end

local function read_runs()
    local runs, histogram = {}, {}
    for _, one in ipairs(redis.call('ZRANGE', completed, 0, LAST_RUNS - 1, 'REV')) do
        local ms = match(small(results, one), '^%[%-?%d+,(%d+)')
        local kind = ms and match(small(jobs, one), '^{"type":"([^"\\]*)"')
        if kind then runs[#runs + 1], runs[#runs + 2] = kind, ms end
    end
    if #runs == 0 then
        local counts, flat = {}, redis.call('HGETALL', metrics)
        local function add(bits, n) counts[tonumber(bits)] = (counts[tonumber(bits)] or 0) + n end
        for i = 1, #flat, 2 do
            local bits = match(flat[i], '^s:%d+:run(%d+):')
            if bits then add(bits, tonumber(flat[i + 1]) or 0) end
        end
        for at, line in string.gmatch((redis.call('HGET', history, '') or '') .. '\n', 'f (%d+) ([^\n]*)\n') do
            if tonumber(at) >= floor(now / 300000) - 12 then
                for bits, n in string.gmatch(line, 'run(%d+)=(%d+)') do add(bits, tonumber(n)) end
            end
        end
        for bits = 0, 45 do
            if (counts[bits] or 0) > 0 then histogram[#histogram + 1], histogram[#histogram + 2] = bits, counts[bits] end
        end
    end
    runs[#runs + 1] = histogram
    return runs
end

local queue = { now, read_queue(), read_workers(), read_runs(), claimed(redis.call('ZRANGE', active, 0, most - 1)) }
if id == '' then return queue end

local state, score
for name, set in pairs({
    waiting = waiting, delayed = delayed, active = active, held = held, blocked = blocked, completed = completed, failed = failed,
}) do
    local found = redis.call('ZSCORE', set, id)
    if found then state, score = name, found end
end
if not state then return queue end

local row = redis.call('HGET', limits, id) or ''
local group = match(row, '^@([^\n]*)') or ''
-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

-- The place in waiting, as digits. A delayed job gets a place behind all jobs of its priority.
local aging = aging_of(redis.call('HGET', meta, 'aging'))
local place = tonumber(score)
if state ~= 'waiting' and state ~= 'held' then
    local priority = match(redis.call('HGET', priorities, id) or '', '^%-?%d+') or 0
    place = (tonumber(priority) + 1) * SPAN - 1
    -- With aging the wait begins when it is due.
    if aging > 0 then place = tonumber(priority) * 1000 * aging + SPAN / 2 + SPAN + 1000 * math.max(now, state == 'delayed' and tonumber(score) or 0) end
end
local digits = format('%016.0f', place + LOWEST)
local start = format('%.0f', floor(place / SPAN) * SPAN)

-- Held jobs of a line before this place.
local function before(line) return number(held_by, from(line), '(' .. line .. '\0' .. digits) end
local in_line = row ~= '' and number(held_by, from(row), '(' .. row .. '\0' .. digits .. '\0' .. id) or 0

-- The jobs of the group in its other lines. Jump from one line to the next.
local in_group = in_line
local cursor = '[@' .. group .. '\0'
for _ = 1, group ~= '' and looks or 0 do
    local member = redis.call('ZRANGE', held_by, cursor, '(@' .. group .. '\11', 'BYLEX', 'LIMIT', 0, 1)[1]
    if not member then break end
    local line = match(member, '^[^%z]+')
    if line ~= row then in_group = in_group + before(line) end
    cursor = '[' .. line .. '\1'
end

-- What was counted in some of all lines or groups, for all of them.
local function in_all(counted, looked_at, all)
    return looked_at > 0 and looked_at < all and floor(counted * all / looked_at) or counted
end

-- Held jobs with a better place, without those whose lines wait for a key.
local held_before = redis.call('ZCOUNT', held, '-inf', format('(%.0f', place))
if held_before > 0 then
    local kept, found = 0, redis.call('ZRANGE', full_lines, 0, looks - 1)
    for _, member in ipairs(found) do
        local line = match(member, '^[^%z]*%z[^%z]*%z%d+%z(.*)$')
        if line and line ~= row then kept = kept + before(line) end
    end
    held_before = math.max(in_line, held_before - in_all(kept, #found, redis.call('ZCARD', full_lines)))
end

-- About how many jobs of other groups have their turns before this one. While its own group takes n turns, another one takes n times
-- the quotient of their weights, if it has so many jobs. Groups beyond those that it looks at are taken to have them.
local ahead = redis.call('ZCOUNT', waiting, '-inf', format('(%.0f', place))
local weighted = redis.call('EXISTS', groups) == 1
local function weight_of(name)
    local weight = tonumber(match(weighted and name ~= '' and redis.call('HGET', groups, name) or '', '^%S+'))
    return weight and weight >= 0.001 and weight <= 1000 and weight or 1
end
local turn = redis.call('HGET', lines, '@' .. group)
local rank = turn and redis.call('ZRANK', turns, turn) or -1
local function jobs_of_others()
    local own = (group ~= '' and in_group or state == 'waiting' and ahead or in_line) / weight_of(group)
    local found, jobs_before = redis.call('ZRANGE', turns, 0, looks - 1), 0
    for i, member in ipairs(found) do
        local name = match(member, '^[^%z]*%z([^%z]*)%z')
        if name and name ~= group then
            local taken = math.ceil(own * weight_of(name)) + (i <= rank and 1 or 0)
            local key = '@' .. name
            local jobs_there = name ~= '' and number(held_by, from(key), to(key)) + number(held_by, '[' .. key .. '\n', '(' .. key .. '\11') or taken
            jobs_before = jobs_before + min(taken, jobs_there)
        end
    end
    return in_all(jobs_before, #found, redis.call('ZCARD', turns))
end

-- How many held jobs go before this one when the key has room. Lines without a group go by their places. Groups take turns, so
-- another group has about as many as this one, if it has so many.
local spot = row ~= '' and redis.call('HGET', lines, '=' .. row) or ''
local function jobs_before(key)
    local mine, others, passed = in_line, 0, sub(spot, 1, #key + 2) ~= 'f' .. key .. '\0'
    local found = redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, looks)
    for _, member in ipairs(found) do
        local line = match(member, '^%z[^%z]*%z%d+%z(.*)$', #key + 1)
        if line == row then
            passed = true
        elseif line and (match(line, '^@([^\n]*)') or '') == group then
            mine = mine + before(line)
        elseif line then
            others = others + min(number(held_by, from(line), to(line)), in_line + (passed and 0 or 1))
        end
    end
    return mine + in_all(others, #found, number(full_lines, from(key), to(key)))
end

local function read_key(key)
    local kind = string.byte(key)
    local set, declared = match(kind ~= 33 and redis.call('HGET', rules, match(key, '^[^:]*')) or '', '^([^\n]*)\n?(.*)$')
    local text = set ~= '' and set or declared
    local ids, seen = {}, {}
    for _, member in ipairs(redis.call('ZRANGE', admitted, from(key), to(key), 'BYLEX', 'LIMIT', 0, most)) do
        local one = match(member, '^[^%z]*', #key + 2)
        if not seen[one] then ids[#ids + 1], seen[one] = one, true end
    end
    return {
        key, text, number(admitted, from(key), to(key)), number(unspent, from(key), to(key)), redis.call('ZSCORE', closed, key),
        jobs_before(key), sub(spot, 1, #key + 2) == 'f' .. key .. '\0' and 1 or 0,
        kind == 33 and redis.call('HGET', breakers, sub(key, 2)), arrivals_of(key, text), claimed(ids),
    }
end

local kind = match(redis.call('HGET', unserved, id) or '', '^%d+ %d+ (.+)$')
local own_key = match(redis.call('HGET', keys, id) or '', '^[^\n]*')
local key_row = redis.call('HGET', unique, match(own_key, '\t(.*)$') or own_key)
local holder, other = match(key_row or '', '^(%S+) ?%S* ?%S* ?(%S*)')
queue[6] = {
    state, score, ahead, aging > 0 and 0 or redis.call('ZCOUNT', waiting, '-inf', '(' .. start),
    held_before, in_line, in_group, rank, jobs_of_others(), group ~= '' and redis.call('HGET', groups, group) or '', group,
    redis.call('HGET', weights, id), kind and redis.call('ZSCORE', parked, kind .. '\0' .. id) and 1 or 0,
    key_row, holder and claimed({ holder ~= id and holder or other })[1] or false, aging,
}
queue[7] = {}
for key in gmatch(row, '[^\n]+') do
    if string.byte(key) ~= 64 then queue[7][#queue[7] + 1] = read_key(key) end
end
return queue
