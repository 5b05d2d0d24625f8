#!lua flags=allow-oom
-- admit: moves jobs from held to waiting, the most urgent first, while there is room under all of their limit keys. A less urgent
--   job of a full key that has not started goes back to held.
-- KEYS openings reopens held held_by admitted unspent spent rules limits waiting meta wake
-- ARGV now, want (largest number of jobs to admit), looks (largest number of held jobs to look at),
--   claims (0: the caller does not claim now, 1: it claims once, 2: it claims as long as there are jobs)
-- RETURNS the number of admitted jobs (0 while the queue is paused); ms until the next token of a key is free (-1: nothing waits for a token);
--   1 if held jobs remain that this call did not look at, else 0
-- Only jobs that a claim of `want` jobs would take are admitted. The others stay in held, so that a more urgent job of the same
-- key can still go before them.
local openings, reopens, held, held_by, admitted, unspent, spent, rules, limits, waiting, meta, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local want, looks, claims = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
-- A paused queue starts no job. Its rules may change before it starts the next one.
if redis.call('HEXISTS', meta, 'paused') == 1 then return { 0, -1, 0 } end
local format, match, gmatch, min, max, huge = string.format, string.match, string.gmatch, math.min, math.max, math.huge

-- shared: lines of a key
-- The members "key NUL ..." of a sorted set with equal scores.
local function from(key) return '[' .. key .. '\0' end
local function to(key) return '(' .. key .. '\1' end
-- end

-- shared: rule
-- The rule of a key is named before its first colon. A row has two lines: an operator's rule, and the one that code declares.
-- A rule is "concurrency count/per/burst ..." with `-` for no concurrency, and `per` in ms. The operator's takes precedence.
local function parse(text)
    local rule = { concurrency = tonumber(match(text, '^%d+')), bands = {} }
    for count, per, burst in gmatch(text, ' (%d+)/(%d+)/(%d+)') do
        local interval = tonumber(per) / tonumber(count)
        -- Pass over a damaged band: it would hold its jobs for ever.
        if interval > 0 and interval < 1e15 and tonumber(burst) >= 1 and tonumber(burst) < 1e15 then
            rule.bands[#rule.bands + 1] = { interval = interval, tolerance = (tonumber(burst) - 1) * interval, burst = tonumber(burst) }
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
-- since it was stored. Then one token is free.
local function arrival_of(key, i, band)
    local stored = tonumber(redis.call('ZSCORE', spent, key .. '\0' .. i) or 0)
    return stored > now + band.burst * band.interval + 1 and now + band.tolerance or max(now, stored)
end
-- end

-- What this call knows of a key: its rule, how many jobs are admitted, how many of them have not spent their token, and for
-- each band the theoretical arrival time of GCRA. The numbers follow what this call admits.
local known = {}
local function facts(key)
    local k = known[key]
    if not k then
        local rule = rule_of(key)
        k = { rule = rule, count = 0, tokens = 0, arrivals = {} }
        if rule.concurrency then k.count = redis.call('ZLEXCOUNT', admitted, from(key), to(key)) end
        if rule.bands[1] then k.tokens = redis.call('ZLEXCOUNT', unspent, from(key), to(key)) end
        for i in ipairs(rule.bands) do
            k.arrivals[i] = arrival_of(key, i, rule.bands[i])
        end
        known[key] = k
    end
    return k
end

local function tokens_of(k, i, band)
    -- Times near the clock's are exact to 0.0003 ms. A token may come so much too early.
    return math.floor((band.tolerance - (k.arrivals[i] - now) + 0.001) / band.interval) + 1 - k.tokens
end

-- How many more jobs of the key can be admitted now.
local function room(key)
    local k = facts(key)
    local left = k.rule.concurrency and k.rule.concurrency - k.count or huge
    for i, band in ipairs(k.rule.bands) do left = min(left, tokens_of(k, i, band)) end
    return left
end

-- The key has no room. If a band is the reason, it opens again when the next token is free. If all tokens that the bucket can
-- have are promised to jobs that have not started, a claim opens it. If its concurrency is the reason, the end of a job does.
local function close(key)
    redis.call('ZREM', openings, key)
    local k, at = facts(key), nil
    for i, band in ipairs(k.rule.bands) do
        if k.tokens < band.burst and tokens_of(k, i, band) < 1 then
            -- Rounding may make this a moment that has passed.
            at = max(at or 0, now + 1, k.arrivals[i] + k.tokens * band.interval - band.tolerance)
        end
    end
    if at then redis.call('ZADD', reopens, format('%.4f', at), key) end
end

local LOWEST = 4503599627370496
local function member_of(key, place, id) return key .. '\0' .. format('%016.0f', place + LOWEST) .. '\0' .. id end

-- All places of a key are taken. If one of them belongs to a job that has not started and is less urgent than `place`, that job
-- goes back to held. The same happens to such jobs when the rule was lowered below the number of admitted jobs. Returns whether
-- any did: then the key must be looked at again.
local function displace(key, place)
    local k = facts(key)
    local full = k.rule.concurrency
    if not full or k.count < full then return false end
    local ids, unstarted = {}, {}
    for i, member in ipairs(redis.call('ZRANGE', admitted, from(key), to(key), 'BYLEX', 'LIMIT', 0, 64)) do
        ids[i] = string.sub(member, #key + 2)
    end
    if #ids == 0 then return false end
    for i, score in ipairs(redis.call('ZMSCORE', waiting, unpack(ids))) do
        if score then unstarted[#unstarted + 1] = { tonumber(score), ids[i] } end
    end
    table.sort(unstarted, function(a, b) return a[1] > b[1] end)
    local moved = false
    for _, job in ipairs(unstarted) do
        if k.count < full or (k.count == full and job[1] < place) then break end
        moved = true
        for other in gmatch(redis.call('HGET', limits, job[2]) or key, '[^\n]+') do
            local o = facts(other)
            o.count = o.count - redis.call('ZREM', admitted, other .. '\0' .. job[2])
            o.tokens = o.tokens - redis.call('ZREM', unspent, other .. '\0' .. job[2])
            if other ~= key then redis.call('ZADD', openings, '-inf', other) end
        end
        redis.call('ZREM', waiting, job[2])
        redis.call('ZADD', held, format('%.0f', job[1]), job[2])
        redis.call('ZADD', held_by, 0, member_of(key, job[1], job[2]))
    end
    return moved
end

-- Keys that a token or the end of a job has opened: find the place of the first job that they hold.
local opened = redis.call('ZRANGE', reopens, '-inf', format('%.3f', now + 0.001), 'BYSCORE', 'LIMIT', 0, looks)
if #opened > 0 then redis.call('ZREM', reopens, unpack(opened)) end
for _, key in ipairs(redis.call('ZRANGE', openings, '-inf', '-inf', 'BYSCORE', 'LIMIT', 0, looks)) do
    opened[#opened + 1] = key
end
local scored, useless = {}, {}
for _, key in ipairs(opened) do
    local first = redis.call('ZRANGE', held_by, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1)[1]
    if first then
        scored[#scored + 1] = format('%.0f', tonumber(match(first, '^%z(%d+)', #key + 1)) - LOWEST)
        scored[#scored + 1] = key
    else
        useless[#useless + 1] = key
    end
end
if #scored > 0 then redis.call('ZADD', openings, unpack(scored)) end
if #useless > 0 then redis.call('ZREM', openings, unpack(useless)) end

local n, ready, ids, places, tokens = 0, {}, {}, {}, {}
-- Look at a held job, which is the first one under its key. It is admitted, or held under another of its keys, which is full.
local function look(key, place, id)
    local keys, full = {}, nil
    for other in gmatch(redis.call('HGET', limits, id) or key, '[^\n]+') do
        keys[#keys + 1] = other
        if not full and other ~= key and room(other) < 1 then full = other end
    end
    if full then
        redis.call('ZADD', held_by, 0, member_of(full, place, id))
        redis.call('ZADD', openings, 'LT', format('%.0f', place), full)
        return
    end
    n = n + 1
    ready[2 * n - 1], ready[2 * n], ids[n] = format('%.0f', place), id, id
    for _, other in ipairs(keys) do
        local k = facts(other)
        k.count = k.count + 1
        places[#places + 1], places[#places + 2] = 0, other .. '\0' .. id
        if k.rule.bands[1] then
            k.tokens = k.tokens + 1
            tokens[#tokens + 1], tokens[#tokens + 2] = 0, other .. '\0' .. id
        end
    end
end

-- Jobs behind the last one that a claim of `want` jobs would take stay where they are.
local last = redis.call('ZRANGE', waiting, max(0, want - 1), max(0, want - 1), 'WITHSCORES')
local horizon = last[2] and tonumber(last[2]) or huge
local left = 0
while true do
    local top = redis.call('ZRANGE', openings, 0, 1, 'WITHSCORES')
    local key = top[1]
    if not key or tonumber(top[2]) > horizon then break end
    if n >= want or looks < 1 then
        left = 1
        break
    end
    looks = looks - 1
    -- Admit the jobs of this key that are more urgent than the first job of the next key. One more is read: it is the next one.
    local bound = min(horizon, tonumber(top[4] or 'inf'))
    local most = min(looks + 1, want - n, 64)
    local page = redis.call('ZRANGE', held_by, from(key), to(key), 'BYLEX', 'LIMIT', 0, most + 1)
    local closed, next_place, gone, displaced = false, nil, {}, false
    for i, member in ipairs(page) do
        local text, id = match(member, '^%z(%d+)%z(.*)$', #key + 1)
        local place = tonumber(text) - LOWEST
        if place > bound or i > most then
            next_place = place
            break
        end
        if room(key) < 1 then displaced = displace(key, place) or displaced end
        if room(key) < 1 then
            closed = true
            close(key)
            break
        end
        if i > 1 then looks = looks - 1 end
        gone[i] = member
        look(key, place, id)
    end
    if #gone > 0 then redis.call('ZREM', held_by, unpack(gone)) end
    if next_place then
        redis.call('ZADD', openings, format('%.0f', next_place), key)
    elseif displaced and not closed then
        redis.call('ZADD', openings, '-inf', key)
    elseif not closed then
        redis.call('ZREM', openings, key)
    end
end

if n > 0 then
    redis.call('ZREM', held, unpack(ids))
    if #places > 0 then redis.call('ZADD', admitted, unpack(places)) end
    if #tokens > 0 then redis.call('ZADD', unspent, unpack(tokens)) end
    redis.call('ZADD', waiting, unpack(ready))
end
if claims == '0' and (n > 0 or redis.call('EXISTS', waiting) == 1) or claims ~= '2' and left == 1 then redis.call('ZADD', wake, 0, 't') end
local head = redis.call('ZRANGE', reopens, 0, 0, 'WITHSCORES')
return { n, head[2] and max(0, math.ceil(tonumber(head[2]) - now - 0.001)) or -1, left }
