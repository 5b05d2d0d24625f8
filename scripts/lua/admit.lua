#!lua flags=allow-oom
-- admit: moves jobs from held to waiting, the most urgent first and in fair turns of their groups, while there is room under all
--   of their limit keys. A less urgent job of a full key that has not started goes back to held.
-- KEYS openings reopens held held_by admitted unspent spent debts rules limits weights waiting meta wake arrivals lines open_lines full_lines turns finish groups closed active undecided seats
-- ARGV now, want (largest number of slots of the jobs to admit), looks (largest number of held jobs and lines to look at),
--   claims (0: the caller does not claim now, 1: it claims once, 2: it claims as long as there are jobs)
-- RETURNS the number of admitted jobs (0 while the queue is paused); ms until the next token of a key is free (-1: nothing waits for a token);
--   1 if held jobs remain that this call did not look at, 2 if overflow must be called first (nothing changed), else 0
-- Only jobs that a claim of `want` jobs would take are admitted. The others stay in held, so that a more urgent job of the same
-- key can still go before them.
-- Held jobs with the same group and keys form a line: if the first of them cannot be admitted, none can. A line is open, or it
-- waits for one of its keys, which is full. The groups of open lines take turns by start-time fair queueing (Goyal et al. 1996): a
-- group's turn has a priority and a start tag, and each job moves the tag of its group on by 1 / weight. Jobs without a group form
-- one group, whose name is empty. A tag is not kept per job, so another weight acts at once on all jobs that wait.
local openings, reopens, held, held_by, admitted, unspent, spent, debts, rules, limits, weights, waiting, meta, wake, arrivals, lines, open_lines, full_lines, turns, finish, groups, closed, active, undecided, seats = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local want, looks, claims = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local settings = redis.call('HMGET', meta, 'paused', 'virtual', 'planned', 'rule', 'over')
-- A paused queue starts no job. Its rules may change before it starts the next one.
if settings[1] then return { 0, -1, 0 } end
-- Jobs over the limit of a rule with an action may not run. overflow decides about them.
if settings[5] and redis.call('EXISTS', undecided) == 1 then
    if claims == '0' then redis.call('ZADD', wake, 0, 't') end
    return { 0, -1, 2 }
end
local format, match, gmatch, sub, min, max, floor, huge = string.format, string.match, string.gmatch, string.sub, math.min, math.max, math.floor, math.huge
local SPAN, LOWEST, LAST = 4398046511104, 4503599627370496, '9999999999999999'
local NO_TURN = LAST .. LAST .. '9999'

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

-- A claim takes no more than the queue's own rule allows. Jobs beyond it would stay in waiting, in front of the turns of others. At
-- least one is admitted, because a claim that finds a job says when the rule allows it.
if settings[4] then
    local own, most = parse(settings[4]), huge
    if own.concurrency then
        most = own.concurrency - redis.call('ZCARD', active) - redis.call('ZLEXCOUNT', admitted, from('queue'), to('queue'))
    end
    for i, band in ipairs(own.bands) do
        most = min(most, floor((band.tolerance - (arrival_of('queue', i, band) - now) + 0.001) / band.interval) + 1)
    end
    want = max(min(1, want), min(want, most))
end

-- What this call writes, which is sent at its end: set -> member -> whether it stands there, and the fields of `lines`.
local written, fields = {}, {}
local function write(set, member, stands)
    if not written[set] then written[set] = {} end
    written[set][member] = stands
end
local function flush()
    for set, members in pairs(written) do
        local score, out, put = set == openings and '-inf' or '0', {}, {}
        for member, stands in pairs(members) do
            if stands then put[#put + 1], put[#put + 2] = score, member else out[#out + 1] = member end
        end
        if #out > 0 then redis.call('ZREM', set, unpack(out)) end
        if #put > 0 then redis.call('ZADD', set, unpack(put)) end
    end
    local out, put = {}, {}
    for field, value in pairs(fields) do
        if value then put[#put + 1], put[#put + 2] = field, value else out[#out + 1] = field end
    end
    if #out > 0 then redis.call('HDEL', lines, unpack(out)) end
    if #put > 0 then redis.call('HSET', lines, unpack(put)) end
    written, fields = {}, {}
end

-- A group's settings: "weight paused ...". The key of a paused group has no room.
local weighted, group_rows = redis.call('EXISTS', groups) == 1, {}
local function group_row(group)
    local row = group_rows[group]
    if not row then
        local weight, paused = match(weighted and redis.call('HGET', groups, group) or '', '^(%S+) ([01])')
        weight = tonumber(weight)
        if not weight or not (weight >= 0.001 and weight <= 1000) then weight = 1 end
        row = { step = floor(1000 / weight + 0.5), paused = paused == '1' }
        group_rows[group] = row
    end
    return row
end

-- What this call knows of a key: its rule, how many jobs are admitted, how many of them have not spent their token, and for
-- each band the theoretical arrival time of GCRA. The numbers follow what this call admits.
-- shared: costs
-- A row of weights has the slots of the job, then a line "unit estimate" for each cost, and behind it what the run really cost, once
-- its handler has said so. A job without a cost in a unit costs 1. Returns the estimate, and the real cost.
local function cost_of(row, unit)
    local estimate, real = match((row or '') .. '\n', '\n' .. unit .. ' (%d+) ?(%d*)\n')
    return tonumber(estimate) or 1, tonumber(real)
end
-- end

-- What the jobs cost that are admitted and have not spent their tokens. They are few, because only what a claim takes is admitted.
local function promised(key, unit)
    local sum, ids = 0, {}
    for i, member in ipairs(redis.call('ZRANGE', unspent, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1000)) do ids[i] = sub(member, #key + 2) end
    -- Admit no more until some of these start.
    if #ids == 1000 then return huge end
    local rows = #ids > 0 and redis.call('HMGET', weights, unpack(ids)) or {}
    for i in ipairs(ids) do sum = sum + cost_of(rows[i], unit) end
    return sum
end

local known = {}
local closes = redis.call('EXISTS', closed) == 1
local function facts(key)
    local k = known[key]
    if not k then
        if sub(key, 1, 1) == '@' then
            k = { rule = { concurrency = group_row(sub(key, 2)).paused and 0 or nil, bands = {} }, count = 0, tokens = 0, arrivals = {}, till = 0 }
            known[key] = k
            return k
        end
        local rule = rule_of(key)
        k = { rule = rule, count = 0, tokens = 0, arrivals = {}, promised = {} }
        -- A handler or an operator may have closed the key until a time.
        k.till = closes and tonumber(redis.call('ZSCORE', closed, key)) or 0
        -- An open breaker whose time is over lets one job through.
        if k.till > 0 and k.till <= now and sub(key, 1, 1) == '!' then
            rule = { concurrency = 1, bands = {} }
            k.rule = rule
        end
        if rule.concurrency then k.count = redis.call('ZLEXCOUNT', admitted, from(key), to(key)) end
        if rule.bands[1] then k.tokens = redis.call('ZLEXCOUNT', unspent, from(key), to(key)) end
        for i in ipairs(rule.bands) do
            k.arrivals[i] = arrival_of(key, i, rule.bands[i])
            local unit = rule.bands[i].unit
            if unit and not k.promised[unit] then k.promised[unit] = promised(key, unit) end
        end
        known[key] = k
    end
    return k
end

local function tokens_of(k, i, band)
    -- Times near the clock's are exact to 0.0003 ms. A token may come so much too early.
    return floor((band.tolerance - (k.arrivals[i] - now) + 0.001) / band.interval) + 1
        - (band.unit and k.promised[band.unit] or k.tokens)
end

-- How many more jobs of the key can be admitted now.
local function room(key)
    local k = facts(key)
    if k.till > now then return 0 end
    local left = k.rule.concurrency and k.rule.concurrency - k.count or huge
    for i, band in ipairs(k.rule.bands) do left = min(left, tokens_of(k, i, band)) end
    return left
end

-- How many slots a job takes: 1 unless it has a row in weights.
local heavy, weighed = redis.call('EXISTS', weights) == 1, {}
local function row_of(id)
    if heavy and not weighed[id] then weighed[id] = redis.call('HGET', weights, id) or '1' end
    return weighed[id] or '1'
end
local function slots_of(id) return tonumber(match(row_of(id), '^%d+')) or 1 end

-- A job promises its costs to a key, or takes the promise back.
local function pledge(k, id, sign)
    for unit, sum in pairs(k.promised or {}) do k.promised[unit] = sum + sign * cost_of(row_of(id), unit) end
end

-- How many tokens of a band must be free for a job. A job that costs more than a burst starts when the bucket is full, and the
-- key then waits for longer.
local function needs(band, id) return band.unit and id and min(cost_of(row_of(id), band.unit), band.burst) or 1 end

-- Whether a job can be admitted under a key now. A job with more slots than the rule has places runs alone.
local function fits(key, id)
    if room(key) < 1 then return false end
    local k = facts(key)
    for i, band in ipairs(k.rule.bands) do
        if band.unit and tokens_of(k, i, band) < needs(band, id) then return false end
    end
    local full = k.rule.concurrency
    return not full or k.count + min(slots_of(id), full) <= full
end

-- The key has no room. If it is closed, it opens at a known time. If a band is the reason, it opens again when the next token is
-- free. If all tokens that the bucket can have are promised to jobs that have not started, a claim opens it. If its concurrency is
-- the reason, the end of a job does. `id`: the job that does not fit.
local function close(key, id)
    write(openings, key, false)
    local k, at = facts(key), nil
    if k.till > now then at = k.till end
    for i, band in ipairs(k.rule.bands) do
        local taken, need = band.unit and k.promised[band.unit] or k.tokens, needs(band, id)
        if taken + need <= band.burst and tokens_of(k, i, band) < need then
            -- Rounding may make this a moment that has passed.
            at = max(at or 0, now + 1, k.arrivals[i] + (taken + need - 1) * band.interval - band.tolerance)
        end
    end
    if at then redis.call('ZADD', reopens, format('%.4f', at), key) end
end

-- Virtual time is the start tag of the job that was admitted last. A queue without groups has none, and all its tags are 0. Tags
-- are whole numbers: a job of weight 1 moves its group's tag on by 1000.
local virtual, planned = tonumber(settings[2]), tonumber(settings[3])
local told, planned_before = virtual, planned

local function digits(place) return format('%016d', place + LOWEST) end
local function band_of(digits) return floor(tonumber(digits) / SPAN) end
local function group_of(line) return match(line, '^@([^\n]*)') or '' end
local function keys_of(line)
    local keys = {}
    for key in gmatch(line, '[^\n]+') do keys[#keys + 1] = key end
    return keys
end

-- What this call knows of groups: the start tag, the member in `turns` (false: no turn), and `only`: its open line if it has only one.
-- A turn is "text NUL group NUL 1 line", or with `+` for several lines. The text has the priority,
-- the start tag and the place of the group's first job, which decides between equal tags.
local shares = {}
local function read_turn(member)
    local text, group, more, line = match(member or '', '^([^%z]*)%z([^%z]*)%z([1+])(.*)$')
    if not text or #text ~= 36 then return nil end
    return text, group, more == '1' and line or nil
end
local function learn(names)
    local unknown, untold = {}, {}
    for _, group in ipairs(names) do
        if not shares[group] then
            shares[group] = { start = 0, turn = false }
            unknown[#unknown + 1] = group
        end
    end
    if #unknown == 0 then return end
    local asked = {}
    for i, group in ipairs(unknown) do asked[i] = '@' .. group end
    for i, member in ipairs(redis.call('HMGET', lines, unpack(asked))) do
        local g = shares[unknown[i]]
        local text, _, only = read_turn(member)
        g.turn, g.only = text and member or false, only
        if text then g.start = tonumber(sub(text, 5, 20)) or 0 else untold[#untold + 1] = unknown[i] end
    end
    if virtual and #untold > 0 then
        for i, tag in ipairs(redis.call('ZMSCORE', finish, unpack(untold))) do shares[untold[i]].start = tonumber(tag) or 0 end
    end
end
local function share(group)
    if not shares[group] then learn({ group }) end
    return shares[group]
end
-- A group that had nothing to run meanwhile starts now. It cannot save its turns for later.
local function start_of(group) return virtual and max(virtual, share(group).start) or 0 end
local function after(start, group) return start + group_row(group).step end
local function turn_text(group, digits) return format('%04d%016d', band_of(digits), start_of(group)) end

-- Give a group a turn with this text, or none.
local function set_turn(group, text, only)
    local g = share(group)
    local turn = text and text .. '\0' .. group .. '\0' .. (only and '1' .. only or '+') or false
    g.only = only
    if not text and virtual and g.start > virtual then redis.call('ZADD', finish, g.start, group) end
    if turn == g.turn then return end
    if g.turn then write(turns, g.turn, false) end
    if turn then write(turns, turn, true) end
    fields['@' .. group] = turn
    g.turn = turn
end

-- Where a line stands: "o" and its member in open_lines, or "f" and its member in full_lines.
local spots = {}
local function spot_of(line)
    if spots[line] == nil then spots[line] = redis.call('HGET', lines, '=' .. line) or false end
    return spots[line]
end
local function stand(line, spot)
    local before = spot_of(line)
    if before == spot then return end
    if before then write(sub(before, 1, 1) == 'o' and open_lines or full_lines, sub(before, 2), false) end
    if spot then write(sub(spot, 1, 1) == 'o' and open_lines or full_lines, sub(spot, 2), true) end
    fields['=' .. line] = spot
    spots[line] = spot
end
local function open_spot(line, first) return 'o' .. group_of(line) .. '\0' .. first .. '\0' .. line end

-- Another line may use the room that a line leaves under its keys. A group's key is full only if the group is paused.
local function mark(keys, full)
    for _, key in ipairs(keys) do
        if key ~= full and sub(key, 1, 1) ~= '@' and room(key) > 0 then write(openings, key, true) end
    end
end

-- The pages of lines that were read. A job that goes back to held takes its place in the page of its line.
local pages = {}
local function put_back(line, member)
    local page = pages[line]
    if not page then return end
    local at = #page.members + 1
    while at > page.at and page.members[at - 1] > member do at = at - 1 end
    if at <= #page.members or not page.full then table.insert(page.members, at, member) end
end

-- All places of a key are taken. If one of them belongs to a job that has not started and is less urgent than the first job of
-- `line`, that job goes back to held. Between groups only the priority decides. The same happens to such jobs when the rule was
-- lowered below the number of admitted jobs.
local crowd = redis.call('EXISTS', waiting) == 1
local function displace(key, line, first, id)
    local k = facts(key)
    local full = k.rule.concurrency
    if not crowd or not full then return end
    local free = full - min(slots_of(id), full)
    if full > 0 and k.count <= free then return end
    local ids, seen, unstarted = {}, {}, {}
    for _, member in ipairs(redis.call('ZRANGE', admitted, from(key), to(key), 'BYLEX', 'LIMIT', 0, heavy and 256 or 64)) do
        local other = match(member, '^[^%z]*', #key + 2)
        if not seen[other] then ids[#ids + 1], seen[other] = other, true end
    end
    if #ids == 0 then return end
    -- A job that has more slots than the rule has places runs alone. Only several jobs are too many.
    local lowered = k.count > full and #ids > 1 or full == 0
    for i, score in ipairs(redis.call('ZMSCORE', waiting, unpack(ids))) do
        if score then unstarted[#unstarted + 1] = { tonumber(score), ids[i] } end
    end
    table.sort(unstarted, function(a, b) return a[1] > b[1] end)
    for _, job in ipairs(unstarted) do
        local names = redis.call('HGET', limits, job[2]) or key
        local place = digits(job[1])
        local later = place > first
        if group_of(names) ~= '' or group_of(line) ~= '' then later = band_of(place) > band_of(first) end
        if full > 0 and k.count <= free or (not lowered and not later) then break end
        local slots = slots_of(job[2])
        for other in gmatch(names, '[^\n]+') do
            local o = facts(other)
            o.count = o.count - redis.call('ZREM', admitted, other .. '\0' .. job[2])
            if slots > 1 then
                local place_of = other .. '\0' .. job[2]
                o.count = o.count - redis.call('ZREMRANGEBYLEX', admitted, '[' .. place_of .. '\0', '(' .. place_of .. '\1')
            end
            local returned = redis.call('ZREM', unspent, other .. '\0' .. job[2])
            o.tokens = o.tokens - returned
            if returned == 1 then pledge(o, job[2], -1) end
        end
        if k.count <= full then lowered = false end
        redis.call('ZREM', waiting, job[2])
        redis.call('ZADD', held, format('%.0f', job[1]), job[2])
        redis.call('ZADD', held_by, 0, names .. '\0' .. place .. '\0' .. job[2])
        put_back(names, names .. '\0' .. place .. '\0' .. job[2])
        redis.call('ZADD', arrivals, 'LT', format('%.0f', job[1]), names)
        -- The places of this job are free again, whatever else keeps the more urgent one from them.
        mark(keys_of(names))
    end
end

-- Lines that open now: group -> the place of the most urgent one, and the line itself if it is the only one.
local opening = {}
local function open(line, first)
    local group = group_of(line)
    if group ~= '' and not virtual then virtual = 0 end
    local o = opening[group]
    if not o then
        opening[group] = { first = first, only = line }
    else
        if o.only ~= line then o.only = nil end
        if first < o.first then o.first = first end
    end
    stand(line, open_spot(line, first))
end

-- Jobs arrived in these lines. A line opens if it is new, or if its first job is more urgent than the one before.
local arrived = redis.call('ZRANGE', arrivals, 0, max(0, looks - 1), 'WITHSCORES')
if #arrived > 0 then
    local asked, names = {}, {}
    for i = 1, #arrived, 2 do names[#names + 1], asked[#asked + 1] = arrived[i], '=' .. arrived[i] end
    redis.call('ZREM', arrivals, unpack(names))
    for i, spot in ipairs(redis.call('HMGET', lines, unpack(asked))) do
        local line, place = names[i], tonumber(arrived[2 * i])
        spots[line] = spot
        -- Without a place somebody found that nothing looks at this line.
        local first = place > -huge and digits(place) or nil
        if not first then
            first = match(redis.call('ZRANGE', held_by, from(line), to(line), 'BYLEX', 'LIMIT', 0, 1)[1] or '', '^%z(%d+)', #line + 1)
            if not first then stand(line, false) end
        end
        local stored = spot and match(spot, sub(spot, 1, 1) == 'o' and '^o[^%z]*%z(%d+)%z' or '^f[^%z]*%z[^%z]*%z(%d+)%z')
        if first and (not stored or #stored ~= 16 or first < stored or place == -huge) then open(line, first) end
    end
    flush()
end

-- A token, the end of a job or another rule opened these keys. As many of their lines open as the key has room for, the most urgent
-- ones of the groups whose turn comes first. A key stays in openings while it has room and lines that wait for it.
local opened = redis.call('ZRANGE', reopens, '-inf', format('%.3f', now + 0.001), 'BYSCORE', 'LIMIT', 0, max(1, looks))
local due = {}
if #opened > 0 then redis.call('ZREM', reopens, unpack(opened)) end
for _, key in ipairs(opened) do
    due[key] = true
    write(openings, key, true)
end
for _, key in ipairs(redis.call('ZRANGE', openings, 0, max(0, looks - 1))) do
    if not due[key] then opened[#opened + 1] = key end
end
for _, key in ipairs(opened) do
    if looks < 1 then break end
    local most = room(key)
    local page = min(most, 64, looks + 1)
    -- Some more are read, because the turn that a line was filed under may have passed.
    local found = redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, max(1, page) + (virtual and 16 or 1))
    looks = looks - max(1, #found)
    if #found == 0 then write(openings, key, false)
    elseif most < 1 then close(key)
    else
        local filed = {}
        for i, member in ipairs(found) do
            local text, first, line = match(member, '^%z([^%z]*)%z(%d+)%z(.*)$', #key + 1)
            if not line or #first ~= 16 then
                redis.call('ZREM', full_lines, member)
            else
                local turn = virtual and turn_text(group_of(line), first) or text
                filed[#filed + 1] = { order = turn .. first, first = first, line = line, member = member, stale = turn ~= text, turn = turn }
            end
        end
        table.sort(filed, function(a, b) return a.order < b.order end)
        for i, one in ipairs(filed) do
            if i <= page then
                spots[one.line] = 'f' .. one.member
                open(one.line, one.first)
            elseif one.stale then
                spots[one.line] = 'f' .. one.member
                stand(one.line, 'f' .. key .. '\0' .. one.turn .. '\0' .. one.first .. '\0' .. one.line)
            end
        end
        if #filed <= page or page >= most then write(openings, key, false) end
    end
end

-- The groups of these lines get their turns, or better ones.
local names = {}
for group in pairs(opening) do names[#names + 1] = group end
learn(names)
for group, o in pairs(opening) do
    local g, text = share(group), turn_text(group, o.first) .. o.first
    if not g.turn then
        set_turn(group, text, o.only)
    else
        local before = sub(g.turn, 1, 36)
        set_turn(group, text < before and text or before, o.only and o.only == g.only and o.only or nil)
    end
end
flush()

-- What a claim takes from waiting comes in between. In a queue with groups, jobs without a group are those of one more group. They
-- are in waiting already, so their turns are only counted. `planned` is the place of the last one that was counted.
local horizon, heads, at_head = LAST, {}, 1
if crowd and not virtual then
    local last = redis.call('ZRANGE', waiting, max(0, want - 1), max(0, want - 1), 'WITHSCORES')
    if last[2] then horizon = digits(last[2]) end
elseif crowd and want > 0 then
    local found, ids = redis.call('ZRANGE', waiting, 0, want - 1, 'WITHSCORES'), {}
    for i = 1, #found, 2 do ids[#ids + 1] = found[i] end
    local rows = #ids > 0 and redis.call('HMGET', limits, unpack(ids)) or {}
    for i = 1, #ids do
        local score = tonumber(found[2 * i])
        local counted = rows[i] and group_of(rows[i]) ~= '' or planned and score <= planned and band_of(digits(score)) == band_of(digits(planned))
            -- Jobs at the front (LIFO, released) are never counted by their place: new ones come before it.
            and score % SPAN > SPAN / 2
        heads[i] = { score = score, counted = counted, digits = digits(score) }
    end
end

local n, count, ready, ids, places, tokens, gone = 0, 0, {}, {}, {}, {}, {}
local function admit(keys, first, id)
    local slots = slots_of(id)
    n, count = n + slots, count + 1
    local place, head = tonumber(first) - LOWEST, heads[at_head]
    -- It goes before the jobs without a group whose turn comes later.
    if head and band_of(head.digits) == band_of(first) and head.score <= place then place = head.score - 1 end
    ready[2 * count - 1], ready[2 * count], ids[count] = format('%d', place), id, id
    for _, key in ipairs(keys) do
        local place_of = key .. '\0' .. id
        places[#places + 1], places[#places + 2] = '0', place_of
        for slot = 2, sub(key, 1, 1) == '@' and 1 or slots do places[#places + 1], places[#places + 2] = '0', place_of .. '\0' .. slot end
        if sub(key, 1, 1) ~= '@' then
            local k = facts(key)
            k.count = k.count + slots
            if k.rule.bands[1] then
                k.tokens = k.tokens + 1
                pledge(k, id, 1)
                tokens[#tokens + 1], tokens[#tokens + 2] = '0', place_of
            end
        end
    end
end

-- Whether another line waits for the key whose turn is earlier. Its job may need more slots than are free, and jobs that need fewer
-- must not overtake it for ever.
local refused = {}
local function ahead(key, line, first)
    if not heavy then return false end
    local order = turn_text(group_of(line), first) .. '\0' .. first
    if refused[key] and refused[key] < order then return true end
    local member = redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1)[1]
    return member and sub(member, #key + 2) < order
end

-- The first key that has no room for a job, which is the first one of its line; and whether it is full. Otherwise another line has
-- its turn there.
local function full_key(keys, line, first, id)
    for _, key in ipairs(keys) do
        if sub(key, 1, 1) == '@' then
            if group_row(sub(key, 2)).paused then return key, true end
        else
            if not fits(key, id) then displace(key, line, first, id) end
            if not fits(key, id) then return key, true end
            if ahead(key, line, first) then return key, false end
        end
    end
    return nil
end

-- The next job of a line, without taking it. Jobs are read in pages.
local page_size, split = 2, {}
local function next_job(line)
    local page = pages[line]
    if not page or page.at > #page.members and page.full then
        local start = page and '(' .. page.members[#page.members] or from(line)
        local size = page and 64 or page_size
        page = { members = redis.call('ZRANGE', held_by, start, to(line), 'BYLEX', 'LIMIT', 0, size), at = 1 }
        page.full = #page.members == size
        pages[line] = page
    end
    local member = page.members[page.at]
    if not member then return nil end
    local first, id = match(member, '^%z(%d+)%z(.*)$', #line + 1)
    return first, id, member
end

-- The open lines of a group, by the places of their first jobs. Only the first ones are read; `edge` is the last of these.
local function read_lines(group)
    local found = redis.call('ZRANGE', open_lines, from(group), to(group), 'BYLEX', 'LIMIT', 0, 65)
    local items = {}
    for i, member in ipairs(found) do
        local first, line = match(member, '^%z(%d+)%z(.*)$', #group + 1)
        if line then
            items[#items + 1] = { text = first, line = line }
            spots[line] = 'o' .. member
        else
            redis.call('ZREM', open_lines, member)
        end
    end
    return { items = items, edge = #found == 65 and items[#items] and items[#items].text or LAST }
end
-- A new item usually belongs near the end. So the search starts there.
local function insert(items, item, least)
    local at = #items + 1
    while at > least and items[at - 1].text > item.text do at = at - 1 end
    table.insert(items, at, item)
end

local owns = {}

-- Serve a group while its turn lasts: until its start tag is behind that of the next group, its jobs have another priority, or
-- the jobs of waiting come first. Returns the text of its next turn and its only line, or nil if it has no open line.
local function serve(group, only, band, rival, until_place)
    local g, own = share(group), owns[group]
    if not own then own = only and { items = { { text = '', line = only } }, edge = LAST } or read_lines(group) end
    owns[group] = own
    while true do
        local top = own.items[1]
        if not top or top.text > own.edge then
            if own.edge == LAST then break end
            flush()
            own = read_lines(group)
            owns[group], top = own, own.items[1]
            if not top then break end
        end
        if n >= want or looks < 1 then break end
        local line = top.line
        local first, id, member = next_job(line)
        if not split[line] then split[line] = keys_of(line) end
        local keys = split[line]
        if not first then
            looks = looks - 1
            table.remove(own.items, 1)
            stand(line, false)
            mark(keys)
        elseif first > top.text then
            -- Its first job was taken since. A line alone keeps its old place while the priority is the same.
            table.remove(own.items, 1)
            if top.text ~= '' and not only or band_of(first) > band then stand(line, open_spot(line, first)) end
            top.text = first
            insert(own.items, top, 1)
        else
            if band_of(first) > band or first > until_place or virtual and start_of(group) > rival then break end
            local full, closing = full_key(keys, line, first, id)
            looks = looks - 1
            if full then
                table.remove(own.items, 1)
                local place = turn_text(group, first) .. '\0' .. first
                stand(line, 'f' .. full .. '\0' .. place .. '\0' .. line)
                if not refused[full] or place < refused[full] then refused[full] = place end
                if closing then close(full, id) end
                mark(keys, full)
            else
                gone[#gone + 1] = member
                pages[line].at = pages[line].at + 1
                admit(keys, first, id)
                if virtual then
                    virtual = start_of(group)
                    g.start = after(virtual, group)
                end
                if pages[line].at > #pages[line].members and not pages[line].full then
                    table.remove(own.items, 1)
                    stand(line, false)
                end
            end
        end
    end
    local top = own.items[1]
    if not top then return nil end
    local first = top.text == '' and format('%016d', band * SPAN) or top.text
    return turn_text(group, first) .. first, not own.items[2] and own.edge == LAST and top.line or nil
end

-- The turns, of which only the first ones are read. `last_text` is the text of the last of these.
local order, at_order, last_text
local function read_turns()
    flush()
    local size = min(want - n, looks) + 2
    local found = redis.call('ZRANGE', turns, '-', '+', 'BYLEX', 'LIMIT', 0, size)
    order, at_order, last_text = {}, 1, NO_TURN
    for i, member in ipairs(found) do
        local text, group, line = read_turn(member)
        local g = group and (shares[group] or { start = tonumber(sub(text, 5, 20)) or 0, turn = member, only = line })
        if not g or g.turn ~= member then
            -- A damaged member, or one that its group does not know of.
            redis.call('ZREM', turns, member)
        else
            shares[group] = g
            order[#order + 1] = { text = text, group = group }
        end
    end
    if #found == size and order[1] then last_text = order[#order].text end
    page_size = min(64, max(2, floor((want - n) / max(1, #order)) + 2))
    return order[1] ~= nil
end

local left = 0
local more = read_turns()
while more do
    local top, head = order[at_order], heads[at_head]
    if not top or top.text > last_text then
        more = last_text ~= NO_TURN and read_turns()
    elseif n >= want or looks < 1 then
        left = 1
        break
    else
        local group, band = top.group, tonumber(sub(top.text, 1, 4))
        local g = share(group)
        local text = sub(top.text, 1, 4) .. format('%016d', start_of(group)) .. sub(top.text, 21)
        local again, only = text, g.only
        local head_band = head and band_of(head.digits)
        if text > top.text then
            -- Virtual time has passed this turn.
            looks = looks - 1
        elseif head and (head_band < band or head_band == band and (head.counted or group ~= '' and start_of('') <= start_of(group))) then
            at_head, n = at_head + 1, n + 1
            if not head.counted then
                virtual, planned = start_of(''), head.score
                local none = share('')
                none.start = after(virtual, '')
                if none.turn then
                    local its_turn = sub(none.turn, 1, 4) .. format('%016d', none.start) .. sub(none.turn, 21, 36)
                    set_turn('', its_turn, none.only)
                    for i = at_order, #order do
                        if order[i].group == '' then
                            table.remove(order, i)
                            insert(order, { text = its_turn, group = '' }, at_order)
                            break
                        end
                    end
                end
            end
            again = nil
        else
            -- The turn lasts until the start tag of the next group.
            local rival, until_place = huge, horizon
            if virtual then
                local other = order[at_order + 1] and order[at_order + 1].text or last_text
                if tonumber(sub(other, 1, 4)) == band then rival = max(virtual, tonumber(sub(other, 5, 20)) or huge) end
                if head and not head.counted and head_band == band then
                    if group == '' then until_place = head.digits else rival = min(rival, start_of('')) end
                end
            end
            local before = n
            again, only = serve(group, only, band, rival, until_place)
            if n == before and again and again <= text and looks > 0 then
                -- The jobs of waiting come first.
                set_turn(group, again, only)
                if group == '' and head and virtual and head_band == band then
                    at_head, n = at_head + 1, n + 1
                    virtual, planned = start_of(''), head.score
                    g.start = after(virtual, '')
                    again = sub(again, 1, 4) .. format('%016d', g.start) .. sub(again, 21)
                else
                    break
                end
            end
            if not again then
                set_turn(group, nil)
                at_order = at_order + 1
            end
        end
        if again then
            set_turn(group, again, only)
            at_order = at_order + 1
            insert(order, { text = again, group = group }, at_order)
        end
    end
end
flush()

if #gone > 0 then redis.call('ZREM', held_by, unpack(gone)) end
if count > 0 then
    redis.call('ZREM', held, unpack(ids))
    if count > 16 then
        -- As in claim.lua: a small set is a list until a long member makes Redis convert it. See decision 20.
        local long = string.rep('x', 65)
        redis.call('ZADD', waiting, '0', long, unpack(ready))
        redis.call('ZREM', waiting, long)
        if #places > 0 then
            redis.call('ZADD', admitted, '0', long, unpack(places))
            redis.call('ZREM', admitted, long)
        end
    else
        redis.call('ZADD', waiting, unpack(ready))
        if #places > 0 then redis.call('ZADD', admitted, unpack(places)) end
    end
    if #tokens > 0 then redis.call('ZADD', unspent, unpack(tokens)) end
    -- What these jobs have in `admitted` now is what they had in `seats` while they were held.
    if settings[5] and #places > 0 then redis.call('ZREM', seats, unpack(places)) end
end
if shares[''] and not shares[''].turn and virtual and shares[''].start > virtual then redis.call('ZADD', finish, shares[''].start, '') end
if virtual and count > 0 then
    -- A tag that virtual time has passed says nothing. When no group has a job that waits, all tags are in the past.
    if redis.call('EXISTS', held) == 0 and not heads[at_head] then
        virtual = max(virtual, tonumber(redis.call('ZRANGE', finish, 0, 0, 'REV', 'WITHSCORES')[2]) or 0)
    end
    local idle = redis.call('ZRANGE', finish, '-inf', format('%d', virtual), 'BYSCORE', 'LIMIT', 0, 2 * count + 16)
    if #idle > 0 then redis.call('ZREM', finish, unpack(idle)) end
end
if virtual ~= told then redis.call('HSET', meta, 'virtual', format('%d', virtual)) end
if planned ~= planned_before then redis.call('HSET', meta, 'planned', format('%d', planned)) end
if redis.call('EXISTS', openings, arrivals) > 0 then left = 1 end
if claims == '0' and (count > 0 or redis.call('EXISTS', waiting) == 1) or claims ~= '2' and left == 1 then redis.call('ZADD', wake, 0, 't') end
local next_token = redis.call('ZRANGE', reopens, 0, 0, 'WITHSCORES')
return { count, next_token[2] and max(0, math.ceil(tonumber(next_token[2]) - now - 0.001)) or -1, left }
