#!lua flags=allow-oom
-- admit: moves jobs from held to waiting, the most urgent first and in fair turns of their groups, while there is room under all
--   of their limit keys. A less urgent job of a full key that has not started goes back to held.
-- KEYS openings reopens held held_by admitted unspent spent debts rules limits weights waiting meta wake arrivals lines open_lines full_lines turns finish groups closed active undecided seats priorities billing completed failed
-- ARGV now, want (largest number of slots of the jobs to admit), looks (largest number of held jobs and lines to look at),
--   claims (0: the caller does not claim now, 1: it claims once, 2: it claims as long as there are jobs)
-- RETURNS the number of admitted jobs (0 while the queue is paused); ms until the next token of a key is free (-1: nothing waits for a token);
--   1 if held jobs remain that this call did not look at, 2 if overflow must be called first (nothing changed), else 0
-- Jobs stay in held until a claim could take them, so that a more urgent job of the same key can still go before them. Without groups the
-- jobs that are in waiting already are not counted: a call admits jobs that come before the `want`-th one of these, so up to `want` more than the
-- claim takes. If a more urgent job arrives meanwhile, such a job goes back to held.
-- Held jobs with the same group and keys form a line: if the first of them cannot be admitted, none can. A line is open, or it
-- waits for one of its keys, which is full. The groups of open lines take turns by start-time fair queueing (Goyal et al. 1996): a
-- group's turn has a priority and a start tag, and each job moves the tag of its group on by 1 / weight. Jobs without a group form
-- one group, whose name is empty. A tag is not kept per job, so another weight acts at once on all jobs that wait.
local openings, reopens, held, held_by, admitted, unspent, spent, debts, rules, limits, weights, waiting, meta, wake, arrivals, lines, open_lines, full_lines, turns, finish, groups, closed, active, undecided, seats, priorities, billing, completed, failed = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local want, looks, claims = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local settings = redis.call('HMGET', meta, 'paused', 'virtual', 'planned', 'rule', 'over', 'aging', 'aged', 'charge')
-- A paused queue starts no job. Its rules may change before it starts the next one.
if settings[1] then return { 0, -1, 0 } end
-- Jobs over the limit of a rule with an action may not run. overflow decides about them.
if settings[5] and redis.call('EXISTS', undecided) == 1 then
    if claims == '0' then redis.call('ZADD', wake, 0, 't') end
    return { 0, -1, 2 }
end
local format, match, gmatch, find, sub, byte = string.format, string.match, string.gmatch, string.find, string.sub, string.byte
local min, max, floor, huge, insert, remove = math.min, math.max, math.floor, math.huge, table.insert, table.remove
-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

-- With aging, places are times: all jobs are in one band, so groups take turns before priorities count.
local aging, LOWEST = aging_of(settings[6]), 4503599627370496
local SPAN = aging > 0 and 9007199254740992 or 4398046511104

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

-- A group's settings: "weight paused ...". The key of a paused group has no room.
local weighted, group_rows = redis.call('EXISTS', groups) == 1, {}
-- What a start costs a group of weight 1: a job counts as 1000. If groups are charged for run time, tags are ms: a start costs 1,
-- and the rest is charged while the job runs.
local charging = settings[8] == 'actual'
local START = charging and 1 or 1000
local PLAIN = { step = START, weight = 1, paused = false }
local function group_row(group)
    if not weighted then return PLAIN end
    local row = group_rows[group]
    if not row then
        local weight, paused = match(weighted and redis.call('HGET', groups, group) or '', '^(%S+) ([01])')
        weight = tonumber(weight)
        if not weight or not (weight >= 0.001 and weight <= 1000) then weight = 1 end
        row = { step = max(1, floor(START / weight + 0.5)), weight = weight, paused = paused == '1' }
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

-- How many places the jobs of a key have. If many keys are asked for and few jobs are admitted, one read counts them all.
local asked_for, counts = 0, nil
local function places_of(key)
    asked_for = asked_for + 1
    if asked_for == 8 and redis.call('ZCARD', admitted) <= 4 * want then
        counts = {}
        for _, member in ipairs(redis.call('ZRANGE', admitted, 0, -1)) do
            local name = sub(member, 1, (find(member, '\0', 1, true) or 1) - 1)
            counts[name] = (counts[name] or 0) + 1
        end
    end
    return counts and (counts[key] or 0) or redis.call('ZLEXCOUNT', admitted, from(key), to(key))
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
        if rule.concurrency then k.count = places_of(key) end
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
    if not heavy then return '1' end
    if not weighed[id] then weighed[id] = redis.call('HGET', weights, id) or '1' end
    return weighed[id] or '1'
end
local function slots_of(id) return heavy and tonumber(match(row_of(id), '^%d+')) or 1 end

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

-- Keys that enter openings (true) or leave it (false), and the times at which keys open again, when this call writes. `opens`: keys that
-- lines wait for have room.
local openable, reopening, opens = {}, {}, false

-- The key has no room. If it is closed, it opens at a known time. If a band is the reason, it opens again when the next token is
-- free. If all tokens that the bucket can have are promised to jobs that have not started, a claim opens it. If its concurrency is
-- the reason, the end of a job does. `id`: the job that does not fit.
local function close(key, id)
    openable[key] = false
    local k, at = facts(key), nil
    if k.till > now then at = k.till end
    for i, band in ipairs(k.rule.bands) do
        local taken, need = band.unit and k.promised[band.unit] or k.tokens, needs(band, id)
        if taken + need <= band.burst and tokens_of(k, i, band) < need then
            -- Rounding may make this a moment that has passed.
            at = max(at or 0, now + 1, k.arrivals[i] + (taken + need - 1) * band.interval - band.tolerance)
        end
    end
    if at then reopening[key] = min(at, reopening[key] or huge) end
end

-- Virtual time is the clock of groups: where the tags of the groups would be if all of them were served at the same time. A queue
-- without groups has none, and all its tags are 0. Tags are whole numbers: a job of weight 1 moves its group's tag on by 1000.
local virtual, planned = tonumber(settings[2]), aging <= 0 and tonumber(settings[3]) or nil
local told, planned_before = virtual, planned

-- Places are numbers from 0 to 2^53 here: the score in held or waiting, plus 2^52. In members they have 16 digits.
local function digits(place) return format('%016d', place) end
local function band_of(place) return floor(place / SPAN) end

-- What this call knows of lines. `stored` is where a line stands in Redis, and `spot` where it will stand: "o" and its member in
-- open_lines, or "f" and its member in full_lines, or false. `place` is the place that its spot has. Its jobs are read in pages;
-- `first` is the place of the next one.
local known_lines, moved_lines, NONE = {}, {}, {}
local function line_of(name)
    local line = known_lines[name]
    if not line then
        local group, keys, own = '', NONE, name
        if byte(name) == 64 then
            local ends = find(name, '\n', 2, true) or #name + 1
            group, own = sub(name, 2, ends - 1), sub(name, ends + 1)
        end
        if find(own, '\n', 1, true) then
            keys = {}
            for key in gmatch(own, '[^\n]+') do keys[#keys + 1] = key end
        elseif own ~= '' then
            keys = { own }
        end
        -- All fields are named here, so that the table gets its size at once.
        line = {
            name = name, group = group, keys = keys, stored = nil, spot = nil, moved = nil, place = nil, jobs = nil, at = nil,
            job = nil, first = nil, id = nil, early = nil, more = nil, size = nil, last = nil, filed = nil,
        }
        known_lines[name] = line
    end
    return line
end
local function stand(line, spot)
    if line.spot == nil then
        line.stored = redis.call('HGET', lines, '=' .. line.name) or false
        line.spot = line.stored
    end
    if line.spot == spot then return end
    line.spot = spot
    if not line.moved then line.moved, moved_lines[#moved_lines + 1] = true, line end
end
local function stands(line, spot) line.stored, line.spot = spot, spot end
local function open_spot(line, place) return 'o' .. line.group .. '\0' .. digits(place) .. '\0' .. line.name end

-- What this call knows of groups: the start tag, and their turn, if they have one. A turn has the priority, the tag, the place of the
-- group's first job, which decides between equal tags, and `only`: its open line if it has only one. `stored` is the member in
-- `turns`, or false: the digits of the first three, then "NUL group NUL 1 line", or with `+` for several lines.
local groups_of, moved_groups = {}, {}
local function read_turn(member)
    local ends = member and byte(member, 37) == 0 and find(member, '\0', 38, true)
    local kind = ends and byte(member, ends + 1)
    if kind ~= 43 and kind ~= 49 then return nil end
    local tag, place = tonumber(sub(member, 5, 20)), tonumber(sub(member, 21, 36))
    if not (tag and place) then return nil end
    return {
        name = sub(member, 38, ends - 1), start = tag, stored = member, band = band_of(place), tag = tag, place = place,
        only = kind == 49 and sub(member, ends + 2) or nil, own = nil, moved = nil,
    }
end
local function learn(names)
    local unknown, asked, untold = {}, {}, {}
    for _, name in ipairs(names) do
        if not groups_of[name] then
            groups_of[name] = { name = name, start = 0, stored = false }
            unknown[#unknown + 1], asked[#asked + 1] = name, '@' .. name
        end
    end
    if #unknown == 0 then return end
    for i, member in ipairs(redis.call('HMGET', lines, unpack(asked))) do
        local g = read_turn(member)
        if g and g.name == unknown[i] then groups_of[g.name] = g else untold[#untold + 1] = unknown[i] end
    end
    if virtual and #untold > 0 then
        for i, tag in ipairs(redis.call('ZMSCORE', finish, unpack(untold))) do groups_of[untold[i]].start = tonumber(tag) or 0 end
    end
end
local function group_of(name)
    if not groups_of[name] then learn({ name }) end
    return groups_of[name]
end
-- A group that had nothing to run meanwhile starts now. It cannot save its turns for later. A group that has a turn is where its jobs
-- brought it, which may be a job behind the clock. Further behind are only those that had to wait for other priorities. The jobs
-- without a group have no turn while they are in waiting, so they may always be so far behind.
local LATE = charging and 60000 or 1000
local function start_of(g)
    if not virtual then return 0 end
    if g.place or g.name == '' then return max(g.start, floor(virtual) - LATE) end
    return max(g.start, floor(virtual))
end

-- A job of a group starts. The clock moves on by the work divided by the number of busy groups, as in WF2Q+ (Bennett and Zhang
-- 1997). Start-time fair queueing takes the start tag of this job for it. Then it stood still while new groups kept coming,
-- all of which start at the clock, and a group that was served before them starved. The clock is not before the first tag, and
-- not more than a job beyond it, or new groups would wait for more than one job of each other group.
local busy, busy_band = 1, nil
local function serve_one(g, band, unturned)
    if busy_band ~= band then
        busy = redis.call('ZLEXCOUNT', turns, format('[%04d', band), format('(%04d', band + 1)) + (unturned and 1 or 0)
        busy_band = band
    end
    local start, step = start_of(g), group_row(g.name).step
    virtual = max(start, min(virtual + START / max(1, busy), start + (charging and max(step, 1000) or step)))
    g.start = start + step
end

-- Give a group a turn with this place, or none.
local finished = {}
local function set_turn(g, place, only)
    if not place and virtual and g.start > virtual then finished[#finished + 1], finished[#finished + 2] = format('%d', g.start), g.name end
    local start = start_of(g)
    g.band, g.tag, g.place, g.only = place and band_of(place), start, place, only
    if place then g.start = start end
    if not g.moved then g.moved, moved_groups[#moved_groups + 1] = true, g end
end
-- Whether turn `a` comes before turn `b`.
local function before(a, b)
    if a.band ~= b.band then return a.band < b.band end
    if a.tag ~= b.tag then return a.tag < b.tag end
    return a.place < b.place
end

-- Write where lines and groups stand now.
local function change(set, out, put)
    if #out > 0 then redis.call('ZREM', set, unpack(out)) end
    if #put > 0 then redis.call('ZADD', set, unpack(put)) end
end
local function flush()
    local fields, unset = {}, {}
    if #moved_lines > 0 then
        local out, put = { [111] = {}, [102] = {} }, { [111] = {}, [102] = {} }
        for _, line in ipairs(moved_lines) do
            local was, is = line.stored, line.spot
            line.moved = false
            if was ~= is then
                if was then
                    local list = out[byte(was)] or {}
                    list[#list + 1] = sub(was, 2)
                end
                if is then
                    local list = put[byte(is)]
                    list[#list + 1], list[#list + 2] = '0', sub(is, 2)
                    fields[#fields + 1], fields[#fields + 2] = '=' .. line.name, is
                else
                    unset[#unset + 1] = '=' .. line.name
                end
                line.stored = is
            end
        end
        moved_lines = {}
        change(open_lines, out[111], put[111])
        change(full_lines, out[102], put[102])
    end
    if #moved_groups > 0 then
        local out, put = {}, {}
        for _, g in ipairs(moved_groups) do
            local was = g.stored
            local is = g.place and format('%04d%016d%016d', g.band, g.tag, g.place) .. '\0' .. g.name .. '\0' .. (g.only and '1' .. g.only or '+') or false
            g.moved = false
            if was ~= is then
                if was then out[#out + 1] = was end
                if is then
                    put[#put + 1], put[#put + 2] = '0', is
                    fields[#fields + 1], fields[#fields + 2] = '@' .. g.name, is
                else
                    unset[#unset + 1] = '@' .. g.name
                end
                g.stored = is
            end
        end
        moved_groups = {}
        change(turns, out, put)
    end
    if #unset > 0 then redis.call('HDEL', lines, unpack(unset)) end
    if #fields > 0 then redis.call('HSET', lines, unpack(fields)) end
    local out, put = {}, {}
    for key, stays in pairs(openable) do
        if stays then put[#put + 1], put[#put + 2] = '-inf', key else out[#out + 1] = key end
    end
    openable, opens = {}, opens or #put > 0
    change(openings, out, put)
    put = {}
    for key, at in pairs(reopening) do put[#put + 1], put[#put + 2] = format('%.4f', at), key end
    reopening = {}
    -- Another line of the key may need fewer tokens, and be free earlier.
    if #put > 0 then redis.call('ZADD', reopens, 'LT', unpack(put)) end
end

-- Another line may use the room that a line leaves under its keys. A group's key is full only if the group is paused. If a line waits for
-- such a key, it `yields`: that one goes before later jobs. `refused`: the first lines that this call sent to a key, and their filings.
local refused, yields = {}, false
-- Whether the first line that waits for a key could go on there. If its job needs more slots or tokens than the key has, then those
-- behind it cannot either, and to open them would be in vain: two such keys would be opened for each other without end.
local function may_go(key)
    local member, first = redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1)[1], refused[key]
    if not member and not first then return false end
    if not heavy then return true end
    local line, spot = first and first.line, nil
    if member and (not first or sub(member, #key + 2) < first.order) then
        line, spot = line_of(match(member, '^%z[^%z]*%z%d+%z(.*)$', #key + 1) or ''), member
    end
    -- This call may have moved the line.
    if line.spot and (spot and line.spot ~= 'f' .. spot or sub(line.spot, 1, #key + 2) ~= 'f' .. key .. '\0') then return true end
    local id = line.id
    if not id then
        local job = redis.call('ZRANGE', held_by, from(line.name), to(line.name), 'BYLEX', 'LIMIT', 0, 1)[1]
        id = job and sub(job, #line.name + 19)
    end
    if not id or fits(key, id) then return true end
    -- No line of the key is open, so none would note when it opens again.
    close(key, id)
    return false
end
local function mark(keys, full)
    for _, key in ipairs(keys) do
        if key ~= full and room(key) > 0 and may_go(key) then openable[key], yields = true, true end
    end
end

-- The first jobs of held by their lines: the name of a line -> its jobs there, which are { place, id }. All jobs before `bound` are among
-- these. If many groups take turns, this finds the jobs of most of them with two calls, and not with one for each.
local early, bound
local function read_early()
    local size = want + 16
    local found, ids = redis.call('ZRANGE', held, 0, size - 1, 'WITHSCORES'), {}
    for i = 1, #found, 2 do ids[#ids + 1] = found[i] end
    early, bound = {}, #ids == size and found[#found] + LOWEST or huge
    local names = #ids > 0 and redis.call('HMGET', limits, unpack(ids)) or NONE
    for i, name in ipairs(names) do
        if name then
            local jobs = early[name] or {}
            jobs[#jobs + 1], early[name] = { found[2 * i] + LOWEST, ids[i] }, jobs
        end
    end
    return names
end

-- The jobs of a line are read in pages: { place, id }, and the member of held_by if it was read.
local function look(line)
    local job = line.jobs[line.at]
    line.job, line.first, line.id = job, job and job[1], job and job[2]
end
local function member_of(line, job) return job[3] or line.name .. '\0' .. digits(job[1]) .. '\0' .. job[2] end
local function read_jobs(line, size)
    line.at, line.early = 1, early and not line.last and early[line.name]
    if line.early then
        line.jobs, line.more = line.early, bound < huge
    else
        line.size = min(64, line.size and 4 * line.size or size)
        local found, jobs, at = redis.call('ZRANGE', held_by, line.last and '(' .. line.last or from(line.name), to(line.name), 'BYLEX', 'LIMIT', 0, line.size), {}, #line.name + 2
        for i, member in ipairs(found) do jobs[i] = { tonumber(sub(member, at, at + 15)), sub(member, at + 17), member } end
        line.jobs, line.more = jobs, #jobs == line.size
    end
    look(line)
end
local function advance(line)
    local job = line.job
    line.at = line.at + 1
    look(line)
    if not line.job and line.more then
        -- The next page is read when it is needed. Until then the bound is the place of its first job.
        line.jobs, line.last = nil, member_of(line, job)
        if line.early and line.place then line.place = max(line.place, bound) end
    end
end
-- A job that goes back to held takes its place in the page of its line.
local function put_back(line, job)
    local jobs = line.jobs
    if not jobs then return end
    local at = #jobs + 1
    while at > line.at and jobs[at - 1][1] > job[1] do at = at - 1 end
    if at <= #jobs or not line.more then insert(jobs, at, job) end
    look(line)
end

-- All places or tokens of a key are taken. If some of them belong to a job that has not started and is less urgent than the first job of
-- `line`, that job goes back to held. Between groups only the priority decides. The same happens to such jobs when the rule was
-- lowered below the number of admitted jobs.
local crowd = redis.call('EXISTS', waiting) == 1
local function is_crowded(k, id)
    local full = k.rule.concurrency
    return full and (full == 0 or k.count > full - min(slots_of(id), full)) or false
end
-- Whether a job lacks tokens that are promised to others, and lacks none that were spent.
local function is_short(k, id)
    local short = false
    for i, band in ipairs(k.rule.bands) do
        local need, have = needs(band, id), tokens_of(k, i, band)
        if have < need then
            if have + (band.unit and k.promised[band.unit] or k.tokens) < need then return false end
            short = true
        end
    end
    return short
end
local function displace(key, line)
    local k = facts(key)
    local full = k.rule.concurrency or huge
    local crowded = crowd and is_crowded(k, line.id)
    if not crowded and not (crowd and is_short(k, line.id)) then return end
    local taken = crowded and admitted or unspent
    local ids, seen, unstarted = {}, {}, {}
    for _, member in ipairs(redis.call('ZRANGE', taken, from(key), to(key), 'BYLEX', 'LIMIT', 0, heavy and 256 or 64)) do
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
        local other = line_of(redis.call('HGET', limits, job[2]) or key)
        local place = job[1] + LOWEST
        local later = place > line.first
        if other.group ~= '' or line.group ~= '' then later = band_of(place) > band_of(line.first) end
        if not is_crowded(k, line.id) and not is_short(k, line.id) or (not lowered and not later) then break end
        local slots = slots_of(job[2])
        if other.group ~= '' then redis.call('ZREM', admitted, '@' .. other.group .. '\0' .. job[2]) end
        for _, name in ipairs(other.keys) do
            local o, place_of = facts(name), name .. '\0' .. job[2]
            o.count = o.count - redis.call('ZREM', admitted, place_of)
            if slots > 1 then o.count = o.count - redis.call('ZREMRANGEBYLEX', admitted, '[' .. place_of .. '\0', '(' .. place_of .. '\1') end
            local returned = redis.call('ZREM', unspent, place_of)
            o.tokens = o.tokens - returned
            if returned == 1 then pledge(o, job[2], -1) end
        end
        if k.count <= full then lowered = false end
        local member = other.name .. '\0' .. digits(place) .. '\0' .. job[2]
        redis.call('ZREM', waiting, job[2])
        redis.call('ZADD', held, format('%.0f', job[1]), job[2])
        redis.call('ZADD', held_by, 0, member)
        put_back(other, { place, job[2], member })
        redis.call('ZADD', arrivals, 'LT', format('%.0f', job[1]), other.name)
        -- The places of this job are free again, whatever else keeps the more urgent one from them.
        mark(other.keys)
    end
end

-- Lines that open now: group -> the place of the most urgent one, and the line itself if it is the only one.
local opening, opening_groups = {}, {}
local function open(line, place)
    if line.group ~= '' and not virtual then virtual = 0 end
    local o = opening[line.group]
    if not o then
        opening[line.group] = { place = place, only = line.name }
        opening_groups[#opening_groups + 1] = line.group
    else
        if o.only ~= line.name then o.only = nil end
        if place < o.place then o.place = place end
    end
    stand(line, open_spot(line, place))
end

-- Jobs arrived in these lines. A line opens if it is new, or if its first job is more urgent than the one before.
local arrived = redis.call('ZRANGE', arrivals, 0, max(0, looks - 1), 'WITHSCORES')
if #arrived > 0 then
    local asked, names = {}, {}
    for i = 1, #arrived, 2 do names[#names + 1], asked[#asked + 1] = arrived[i], '=' .. arrived[i] end
    redis.call('ZREM', arrivals, unpack(names))
    for i, spot in ipairs(redis.call('HMGET', lines, unpack(asked))) do
        local line, first = line_of(names[i]), tonumber(arrived[2 * i]) + LOWEST
        -- Without a place somebody found that nothing looks at this line.
        local lost = first == -huge
        stands(line, spot)
        if lost then
            local member = redis.call('ZRANGE', held_by, from(line.name), to(line.name), 'BYLEX', 'LIMIT', 0, 1)[1] or ''
            first = tonumber(sub(member, #line.name + 2, #line.name + 17))
            if not first then stand(line, false) end
        end
        local stored = spot and match(spot, byte(spot) == 111 and '^o[^%z]*%z(%d+)%z' or '^f[^%z]*%z[^%z]*%z(%d+)%z')
        if first and (not stored or #stored ~= 16 or first < tonumber(stored) or lost) then open(line, first) end
    end
    flush()
end

-- A token, the end of a job or another rule opened these keys. As many of their lines open as the key has room for, the most urgent
-- ones of the groups whose turn comes first. A key stays in openings while it has room and lines that wait for it.
local function open_keys()
    opens, yields = false, false
    local opened = redis.call('ZRANGE', reopens, '-inf', format('%.3f', now + 0.001), 'BYSCORE', 'LIMIT', 0, max(1, looks))
    local due = {}
    if #opened > 0 then redis.call('ZREM', reopens, unpack(opened)) end
    for _, key in ipairs(opened) do
        due[key] = true
        openable[key] = true
    end
    for _, key in ipairs(redis.call('ZRANGE', openings, 0, max(0, looks - 1))) do
        if not due[key] then opened[#opened + 1] = key end
    end
    -- Usually no line waits for a key, or few do.
    local nobody = #opened > 0 and redis.call('EXISTS', full_lines) == 0
    for _, key in ipairs(opened) do
        if looks < 1 and not nobody then break end
        -- Some more are read than open, because the turn that a line was filed under may have passed.
        local more = virtual and 16 or 1
        local found = nobody and NONE or redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1 + more)
        local most = #found > 0 and room(key) or 0
        if not nobody then looks = looks - 1 end
        if #found == 0 then openable[key] = false
        elseif most < 1 then close(key)
        else
            local page, filed = min(most, 64, looks + 2), {}
            if page > 1 and #found > more then found = redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, page + more) end
            looks = looks + 1 - #found
            for _, member in ipairs(found) do
                local text, first, name = match(member, '^%z([^%z]*)%z(%d+)%z(.*)$', #key + 1)
                if not name or #first ~= 16 then
                    redis.call('ZREM', full_lines, member)
                else
                    local line = line_of(name)
                    -- Its group keeps the tag that it was filed with, so that others which come back at once do not go before it.
                    local turn = virtual and format('%04d%016d', band_of(tonumber(first)), max(tonumber(sub(text, 5)) or 0, group_of(line.group).start, floor(virtual) - LATE)) or text
                    filed[#filed + 1] = { order = turn .. first, first = first, line = line, stale = turn ~= text, turn = turn }
                    stands(line, 'f' .. member)
                end
            end
            table.sort(filed, function(a, b) return a.order < b.order end)
            for i, one in ipairs(filed) do
                if i <= page then
                    one.line.filed = tonumber(one.first)
                    open(one.line, one.line.filed)
                elseif one.stale then
                    stand(one.line, 'f' .. key .. '\0' .. one.turn .. '\0' .. one.first .. '\0' .. one.line.name)
                end
            end
            if #filed <= page or page >= most then openable[key] = false else opens = true end
        end
    end

    -- The groups of these lines get their turns, or better ones.
    learn(opening_groups)
    for _, name in ipairs(opening_groups) do
        local g, o = groups_of[name], opening[name]
        -- Its lines are read again.
        g.own = nil
        if not g.place then
            set_turn(g, o.place, o.only)
        else
            local band, start = band_of(o.place), start_of(g)
            local better = band < g.band or band == g.band and (start < g.tag or start == g.tag and o.place < g.place)
            local only = o.only and o.only == g.only and o.only or nil
            if better then set_turn(g, o.place, only)
            elseif only ~= g.only then
                g.only = only
                if not g.moved then g.moved, moved_groups[#moved_groups + 1] = true, g end
            end
        end
    end
    opening, opening_groups = {}, {}
    flush()
end
open_keys()

-- Groups that are charged for run time pay while their jobs run. A call looks at the runs that were not looked at for longest. A run
-- that has ended is found in its set, whatever ended it, so nothing can be left unpaid. `billing` has members "id NUL tag NUL
-- group": the tag that the group had when the run was looked at last counts if the tag was dropped meanwhile.
local function charge_runs()
    local found = redis.call('ZRANGE', billing, 0, 2 * want + 15, 'WITHSCORES')
    local members, runs, ids, names = {}, {}, {}, {}
    for i = 1, #found, 2 do
        local id, clock, name = match(found[i], '^([^%z]*)%z(%d+)%z(.*)$')
        members[#members + 1] = found[i]
        if id then
            runs[#runs + 1] = { id = id, clock = tonumber(clock), name = name, since = tonumber(found[i + 1]) }
            ids[#ids + 1], names[#names + 1] = id, name
        end
    end
    if #members > 0 then redis.call('ZREM', billing, unpack(members)) end
    if #ids == 0 then return end
    learn(names)
    local running, unstarted = redis.call('ZMSCORE', active, unpack(ids)), redis.call('ZMSCORE', waiting, unpack(ids))
    local done, lost = redis.call('ZMSCORE', completed, unpack(ids)), redis.call('ZMSCORE', failed, unpack(ids))
    local among, put, moved = max(1, redis.call('ZCARD', turns)), {}, {}
    for i, run in ipairs(runs) do
        local ended, g = not running[i] and not unstarted[i], group_of(run.name)
        local till = ended and tonumber(done[i] or lost[i] or now) or now
        local ms = unstarted[i] and 0 or max(0, min(now, till) - run.since) * slots_of(run.id)
        -- The start has cost 1 ms already.
        if ended then ms = max(0, ms - 1) end
        if ms > 0 then
            g.start = max(g.start, run.clock) + floor(ms / group_row(run.name).weight + 0.5)
            virtual = virtual + ms / among
            moved[g] = true
        end
        if not ended then put[#put + 1], put[#put + 2] = now, run.id .. '\0' .. format('%d', max(g.start, run.clock)) .. '\0' .. run.name end
    end
    if #put > 0 then redis.call('ZADD', billing, unpack(put)) end
    -- The clock stays near the first tag: the time that everybody pays for moves the tags, too.
    for g in pairs(moved) do set_turn(g, g.place, g.only) end
    flush()
end
if charging and virtual then charge_runs() end

-- What a claim takes from waiting comes in between. In a queue with groups, jobs without a group are those of one more group. They
-- are in waiting already, so their turns are only counted. `planned` is the score of the last one that was counted. With aging a new job
-- may come before it. So `planned` then has pairs: a score, and the number of the newest job at that time. A job was counted if
-- both of its numbers are within those of a pair.
local plans = {}
for score, newest in gmatch(aging > 0 and settings[3] or '', '(%-?%d+) (%d+)') do plans[#plans + 1] = { tonumber(score), tonumber(newest) } end
local function was_counted(score, row)
    local number = score - 2199023255552 - (tonumber(match(row or '', '^%-?%d+')) or 0) * 1000 * aging
    for _, plan in ipairs(number > 0 and plans or {}) do
        if score <= plan[1] and number <= plan[2] then return true end
    end
    return false
end
local horizon, heads, at_head = huge, {}, 1
if crowd and not virtual then
    local last = redis.call('ZRANGE', waiting, max(0, want - 1), max(0, want - 1), 'WITHSCORES')
    if last[2] then horizon = last[2] + LOWEST end
elseif crowd and want > 0 then
    local found, ids = redis.call('ZRANGE', waiting, 0, want - 1, 'WITHSCORES'), {}
    for i = 1, #found, 2 do ids[#ids + 1] = found[i] end
    local rows = #ids > 0 and redis.call('HMGET', limits, unpack(ids)) or {}
    local columns = #plans > 0 and #ids > 0 and redis.call('HMGET', priorities, unpack(ids)) or {}
    for i = 1, #ids do
        local score = tonumber(found[2 * i])
        local place = score + LOWEST
        local counted = rows[i] and byte(rows[i]) == 64 or planned and score <= planned and band_of(place) == band_of(planned + LOWEST)
            -- Jobs at the front (LIFO, released) are never counted by their place: new ones come before it.
            and score % SPAN > SPAN / 2
        if aging > 0 then counted = counted or was_counted(score, columns[i]) end
        heads[i] = { id = ids[i], score = score, counted = counted, place = place, band = band_of(place) }
    end
end

local n, count, ready, ids, places, tokens, gone, bills = 0, 0, {}, {}, {}, {}, {}, {}
local function begin_bill(id, group)
    if charging and virtual then bills[#bills + 1], bills[#bills + 2] = now, id .. '\0' .. format('%d', start_of(group_of(group))) .. '\0' .. group end
end
local ahead_of, lowest = {}, {}
local function admit(line)
    local id, slots = line.id, slots_of(line.id)
    n, count = n + slots, count + 1
    local place, head = line.first - LOWEST, heads[at_head]
    -- It goes before the jobs without a group whose turn comes later.
    if head and head.band == band_of(line.first) then
        if head.score <= place then place, ahead_of[count] = head.score - 1, at_head else lowest[at_head] = max(lowest[at_head] or place, place) end
    end
    ready[2 * count - 1], ready[2 * count], ids[count], gone[count] = format('%d', place), id, id, member_of(line, line.job)
    begin_bill(id, line.group)
    if line.group ~= '' then places[#places + 1], places[#places + 2] = '0', '@' .. line.group .. '\0' .. id end
    for _, key in ipairs(line.keys) do
        local k, place_of = facts(key), key .. '\0' .. id
        places[#places + 1], places[#places + 2] = '0', place_of
        for slot = 2, slots do places[#places + 1], places[#places + 2] = '0', place_of .. '\0' .. slot end
        k.count = k.count + slots
        if k.rule.bands[1] then
            k.tokens = k.tokens + 1
            pledge(k, id, 1)
            tokens[#tokens + 1], tokens[#tokens + 2] = '0', place_of
        end
    end
end

-- Where a line that is full is filed: by its turn, and then by its first job.
local function filing(line) return format('%04d%016d', band_of(line.first), start_of(group_of(line.group))) .. '\0' .. digits(line.first) end

-- Whether another line waits for the key whose turn is earlier. Its job may need more slots than are free, and jobs that need fewer
-- must not overtake it for ever. Or this line was filed under a job that was killed or removed since, and so it opened too early.
local function ahead(key, line)
    local stale = line.filed and line.first > line.filed
    if not heavy and not stale then return false end
    local order = filing(line)
    local other = refused[key] and refused[key].order < order
    if not other then
        local member = redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1)[1]
        other = member and sub(member, #key + 2) < order
    end
    -- That one opens now, if it can go. Nobody else would open it, because the key has room.
    if other and may_go(key) then openable[key], yields = true, true end
    return other
end

-- The first key that has no room for the next job of a line; and whether it is full. Otherwise another line has its turn there.
local function full_key(line)
    if line.group ~= '' and group_row(line.group).paused then return '@' .. line.group, true end
    for _, key in ipairs(line.keys) do
        if not fits(key, line.id) then displace(key, line) end
        if not fits(key, line.id) then return key, true end
        if ahead(key, line) then return key, false end
    end
    return nil
end

-- The next job of a line has no room under a key: the line waits there, and others may use what it leaves under its other keys.
local function refuse(line, key, closing)
    local place = filing(line)
    stand(line, 'f' .. key .. '\0' .. place .. '\0' .. line.name)
    if not refused[key] or place < refused[key].order then refused[key] = { order = place, line = line } end
    if closing then close(key, line.id) end
    mark(line.keys, key)
end

-- Without groups, jobs are admitted in the order of held, as far as their lines are open. An open line keeps its spot meanwhile,
-- although its first job has gone: a spot may have the place of an earlier job, and moving it costs more than the job.
local function serve_early()
    local names, asked, unknown = read_early(), {}, {}
    for name in pairs(early) do unknown[#unknown + 1], asked[#asked + 1] = line_of(name), '=' .. name end
    for i, spot in ipairs(#asked > 0 and redis.call('HMGET', lines, unpack(asked)) or NONE) do
        if unknown[i].spot == nil then stands(unknown[i], spot) end
    end
    for _, name in ipairs(names) do
        local line = name and line_of(name)
        if n >= want or looks < 1 or yields then break end
        if line and line.spot and byte(line.spot) == 111 then
            if not line.jobs then read_jobs(line) end
            if line.first > horizon then break end
            local full, closing = full_key(line)
            looks = looks - 1
            if full then
                refuse(line, full, closing)
            else
                admit(line)
                advance(line)
                if line.jobs and not line.first then stand(line, false) end
            end
        end
    end
end

-- The open lines of a group, by the places of their first jobs. Only the first ones are read; `edge` is the place of the last of these.
local function read_lines(group)
    flush()
    local found, at = redis.call('ZRANGE', open_lines, from(group), to(group), 'BYLEX', 'LIMIT', 0, 65), #group + 2
    local own, last = { at = 1, edge = huge }, nil
    for _, member in ipairs(found) do
        local place = byte(member, at + 16) == 0 and tonumber(sub(member, at, at + 15))
        if place then
            local line = line_of(sub(member, at + 17))
            stands(line, 'o' .. member)
            line.place, last = place, place
            own[#own + 1] = line
        else
            redis.call('ZREM', open_lines, member)
        end
    end
    if #found == 65 and last then own.edge = last end
    return own
end

-- Serve a group while its turn lasts: until its start tag is behind that of the next group, its jobs have another priority, or
-- the jobs of waiting come first. Returns the place of its next turn and its only line, or nil if it has no open line.
local page_size = 2
local function serve(g, rival, until_place)
    local own, band, only = g.own, g.band, g.only
    if not own then
        own = only and { line_of(only), at = 1, edge = huge } or read_lines(g.name)
        g.own = own
    end
    while true do
        local line = own[own.at]
        if own.edge < huge and (not line or line.place > own.edge) then
            own = read_lines(g.name)
            g.own, line = own, own[1]
        end
        if not line or n >= want or looks < 1 or yields then break end
        if not line.jobs then
            if line.place and virtual and start_of(g) > rival then break end
            read_jobs(line, only and page_size or 2)
        end
        local first = line.first
        if not first then
            looks = looks - 1
            own.at = own.at + 1
            stand(line, false)
            mark(line.keys)
        elseif not line.place or first > line.place then
            -- Its first job was taken since. A line alone keeps its old place while the priority is the same.
            if line.place and not only or band_of(first) > band then stand(line, open_spot(line, first)) end
            line.place = first
            if own[own.at + 1] or own.edge < huge then
                -- It usually belongs near the end. So the search starts there.
                own.at = own.at + 1
                if first <= own.edge then
                    local at = #own + 1
                    while at > own.at and own[at - 1].place > first do at = at - 1 end
                    insert(own, at, line)
                end
            end
        else
            if band_of(first) > band or first > until_place or virtual and start_of(g) > rival then break end
            local full, closing = full_key(line)
            looks = looks - 1
            if full then
                own.at = own.at + 1
                refuse(line, full, closing)
            else
                admit(line)
                advance(line)
                if virtual then serve_one(g, band, heads[1] and not group_of('').place) end
                if line.jobs and not line.first then
                    own.at = own.at + 1
                    stand(line, false)
                end
            end
        end
    end
    local line = own[own.at]
    if not line then return nil end
    return line.place or band * SPAN, not own[own.at + 1] and own.edge == huge and line.name or nil
end

-- The turns, of which only the first ones are read. `last` is a copy of the last of these, or nil if these are all.
local order, at_order, last
local function read_turns()
    flush()
    -- At least one is read, or nobody would learn that turns remain.
    local size = max(1, min(want - n, looks)) + 2
    local found = redis.call('ZRANGE', turns, '-', '+', 'BYLEX', 'LIMIT', 0, size)
    order, at_order, last = {}, 1, nil
    for _, member in ipairs(found) do
        local read = read_turn(member)
        local g = read and groups_of[read.name] or read
        if not g or g.stored ~= member then
            -- A damaged member, or one that its group does not know of.
            redis.call('ZREM', turns, member)
        else
            groups_of[g.name] = g
            order[#order + 1] = g
        end
    end
    local final = order[#order]
    if #found == size and final then last = { band = final.band, tag = final.tag, place = final.place } end
    if count == 0 and virtual and #order > 16 then
        local middle = order[floor(#order / 2)]
        if redis.call('ZCOUNT', held, '-inf', format('%d', middle.place - LOWEST)) <= 2 * want then read_early() end
    end
    page_size = min(64, max(2, floor((want - n) / max(1, #order)) + 2))
    return final ~= nil
end
-- The group has its next turn, behind those that come before it.
local function queue_up(g, from_place, only)
    set_turn(g, from_place, only)
    local at = #order + 1
    while at > at_order and before(g, order[at - 1]) do at = at - 1 end
    insert(order, at, g)
end

local left = 0
if not virtual and redis.call('ZCARD', open_lines) > 16 then
    -- If full lines have most of the first jobs, the open lines are found sooner by themselves.
    local none = group_of('')
    if none.place and redis.call('ZCOUNT', held, '-inf', format('(%d', none.place - LOWEST)) <= want then serve_early() end
end
local more = not yields and read_turns()
while true do
    while more do
        local g, head = order[at_order], heads[at_head]
        if not g or last and before(last, g) then
            more = last and read_turns()
        elseif n >= want or looks < 1 then
            left = 1
            break
        else
            local start = start_of(g)
            if start > g.tag then
                -- Virtual time has passed this turn.
                looks = looks - 1
                at_order = at_order + 1
                queue_up(g, g.place, g.only)
            elseif head and (head.band < g.band or head.band == g.band and (head.counted or g.name ~= '' and start_of(group_of('')) <= start)) then
                at_head, n = at_head + 1, n + 1
                if not head.counted then
                    local none = group_of('')
                    planned = head.score
                    begin_bill(head.id, '')
                    serve_one(none, head.band, not none.place)
                    if none.place then
                        set_turn(none, none.place, none.only)
                        for i = at_order, #order do
                            if order[i] == none then
                                remove(order, i)
                                queue_up(none, none.place, none.only)
                                break
                            end
                        end
                    end
                end
            else
                -- The turn lasts until the start tag of the next group.
                local rival, until_place, n_before, place, band = huge, horizon, n, g.place, g.band
                if virtual then
                    local other = order[at_order + 1] or last
                    if other and other.band == band then rival = max(floor(virtual) - LATE, other.tag) end
                    if head and not head.counted and head.band == band then
                        if g.name == '' then until_place = head.place else rival = min(rival, start_of(group_of(''))) end
                    end
                end
                local again, only = serve(g, rival, until_place)
                if yields then
                    set_turn(g, again, only)
                    break
                elseif not again then
                    set_turn(g, nil)
                    at_order = at_order + 1
                elseif n > n_before or looks < 1 or band_of(again) > band or again > place then
                    at_order = at_order + 1
                    queue_up(g, again, only)
                else
                    -- The jobs of waiting come first.
                    set_turn(g, again, only)
                    if g.name ~= '' or not (head and virtual and head.band == band) then break end
                    at_head, n = at_head + 1, n + 1
                    planned = head.score
                    begin_bill(head.id, '')
                    serve_one(g, head.band)
                    at_order = at_order + 1
                    queue_up(g, again, only)
                end
            end
        end
    end
    flush()
    if n >= want or looks < 1 or not opens then break end
    -- A line left room under a key. The next line may use it, and its jobs go before later ones.
    open_keys()
    more = read_turns()
end
if #finished > 0 then redis.call('ZADD', finish, unpack(finished)) end
if #bills > 0 then redis.call('ZADD', billing, unpack(bills)) end

if count > 0 then
    redis.call('ZREM', held_by, unpack(gone))
    redis.call('ZREM', held, unpack(ids))
    -- Several jobs that go before the same job of waiting keep their order. With equal places their ids would decide. If there is
    -- not enough room behind the job before that one, the first ones have equal places.
    local next_place = {}
    for i = next(ahead_of) and count or 0, 1, -1 do
        local at = ahead_of[i]
        if at then
            local last = heads[at].score - 1
            local least = max(at > 1 and heads[at - 1].score or -huge, lowest[at] or -huge) + 1
            local place = max(next_place[at] or last, min(least, last))
            ready[2 * i - 1], next_place[at] = format('%d', place), place - 1
        end
    end
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
if early and not virtual and redis.call('ZCARD', open_lines) + redis.call('ZCARD', full_lines) > redis.call('ZCARD', held) then
    -- Some open lines have no job any more. The oldest spots tell which.
    for _, line in ipairs(read_lines('')) do
        local first = redis.call('ZRANGE', held_by, from(line.name), to(line.name), 'BYLEX', 'LIMIT', 0, 1)[1]
        local place = first and tonumber(sub(first, #line.name + 2, #line.name + 17))
        stand(line, place and open_spot(line, place) or false)
    end
    flush()
end
local none = groups_of['']
if none and not none.place and virtual and none.start > virtual - LATE then redis.call('ZADD', finish, none.start, '') end
if virtual and count > 0 then
    -- A tag that virtual time has passed says nothing. When no group has a job that waits, all tags are in the past.
    if redis.call('EXISTS', held) == 0 and not heads[at_head] then
        virtual = max(virtual, tonumber(redis.call('ZRANGE', finish, 0, 0, 'REV', 'WITHSCORES')[2]) or 0)
    end
    local idle = redis.call('ZRANGE', finish, '-inf', format('%d', floor(virtual)), 'BYSCORE', 'LIMIT', 0, 2 * count + 16)
    for i, name in ipairs(idle) do
        if name == '' then remove(idle, i) end
    end
    if #idle > 0 then redis.call('ZREM', finish, unpack(idle)) end
end
if virtual ~= told then redis.call('HSET', meta, 'virtual', format('%.3f', virtual)) end
if planned ~= planned_before then
    local text = format('%d', planned)
    if aging > 0 then
        text = text .. ' ' .. format('%.0f', tonumber(settings[7]) or 0)
        for i = 1, min(8, #plans) do
            if plans[i][1] > planned then text = text .. format(' %d %d', plans[i][1], plans[i][2]) end
        end
    end
    redis.call('HSET', meta, 'planned', text)
end
-- What is left behind as many jobs as the caller claims is no reason to wake another worker: the claim does that, unless these jobs
-- need more slots than its worker has. Then the caller would get the token itself, again and again.
local unfinished = redis.call('EXISTS', openings, arrivals) > 0
local wakes = unfinished or left == 1 and n < want
if unfinished then left = 1 end
if claims == '0' and (count > 0 or redis.call('EXISTS', waiting) == 1) or claims ~= '2' and wakes then redis.call('ZADD', wake, 0, 't') end
local next_token = redis.call('ZRANGE', reopens, 0, 0, 'WITHSCORES')
return { count, next_token[2] and max(0, math.ceil(tonumber(next_token[2]) - now - 0.001)) or -1, left }
