#!lua flags=allow-oom
-- admit: moves jobs from held to waiting, the most urgent first and in fair turns of their groups, while there is room under all
--   of their limit keys. A less urgent job of a full key that has not started goes back to held.
-- KEYS openings reopens held held_by admitted unspent spent rules limits weights waiting meta wake arrivals lines open_lines full_lines turns finish groups closed
-- ARGV now, want (largest number of slots of the jobs to admit), looks (largest number of held jobs and lines to look at),
--   claims (0: the caller does not claim now, 1: it claims once, 2: it claims as long as there are jobs)
-- RETURNS the number of admitted jobs (0 while the queue is paused); ms until the next token of a key is free (-1: nothing waits for a token);
--   1 if held jobs remain that this call did not look at, else 0
-- Only jobs that a claim of `want` jobs would take are admitted. The others stay in held, so that a more urgent job of the same
-- key can still go before them.
-- Held jobs with the same group and keys form a line: if the first of them cannot be admitted, none can. A line is open, or it
-- waits for one of its keys, which is full. The groups of open lines take turns by start-time fair queueing (Goyal et al. 1996): a
-- group's turn has a priority and a start tag, and each job moves the tag of its group on by 1 / weight. Jobs without a group form
-- one group, whose name is empty. A tag is not kept per job, so another weight acts at once on all jobs that wait.
local openings, reopens, held, held_by, admitted, unspent, spent, rules, limits, weights, waiting, meta, wake, arrivals, lines, open_lines, full_lines, turns, finish, groups, closed = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local want, looks, claims = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local settings = redis.call('HMGET', meta, 'paused', 'virtual', 'planned')
-- A paused queue starts no job. Its rules may change before it starts the next one.
if settings[1] then return { 0, -1, 0 } end
local format, match, gmatch, sub, min, max, floor, huge = string.format, string.match, string.gmatch, string.sub, math.min, math.max, math.floor, math.huge
local SPAN, LOWEST, LAST = 4398046511104, 4503599627370496, '9999999999999999'

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

-- A group's settings: "weight paused ...". The key of a paused group has no room.
local weighted, group_rows = redis.call('EXISTS', groups) == 1, {}
local function group_row(group)
    local row = group_rows[group]
    if not row then
        local weight, paused = match(weighted and redis.call('HGET', groups, group) or '', '^(%S+) ([01])')
        weight = tonumber(weight)
        row = { weight = weight and weight >= 0.001 and weight <= 1000 and weight or 1, paused = paused == '1' }
        group_rows[group] = row
    end
    return row
end

-- What this call knows of a key: its rule, how many jobs are admitted, how many of them have not spent their token, and for
-- each band the theoretical arrival time of GCRA. The numbers follow what this call admits.
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
        k = { rule = rule, count = 0, tokens = 0, arrivals = {} }
        -- A handler or an operator may have closed the key until a time.
        k.till = closes and tonumber(redis.call('ZSCORE', closed, key)) or 0
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
    return floor((band.tolerance - (k.arrivals[i] - now) + 0.001) / band.interval) + 1 - k.tokens
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
local function slots_of(id)
    if heavy and not weighed[id] then weighed[id] = tonumber(match(redis.call('HGET', weights, id) or '', '^%d+')) or 1 end
    return weighed[id] or 1
end

-- Whether a job can be admitted under a key now. A job with more slots than the rule has places runs alone.
local function fits(key, id)
    if room(key) < 1 then return false end
    local k = facts(key)
    local full = k.rule.concurrency
    return not full or k.count + min(slots_of(id), full) <= full
end

-- The key has no room. If it is closed, it opens at a known time. If a band is the reason, it opens again when the next token is
-- free. If all tokens that the bucket can have are promised to jobs that have not started, a claim opens it. If its concurrency is
-- the reason, the end of a job does.
local function close(key)
    redis.call('ZREM', openings, key)
    local k, at = facts(key), nil
    if k.till > now then at = k.till end
    for i, band in ipairs(k.rule.bands) do
        if k.tokens < band.burst and tokens_of(k, i, band) < 1 then
            -- Rounding may make this a moment that has passed.
            at = max(at or 0, now + 1, k.arrivals[i] + k.tokens * band.interval - band.tolerance)
        end
    end
    if at then redis.call('ZADD', reopens, format('%.4f', at), key) end
end

-- Virtual time is the start tag of the job that was admitted last. A queue without groups has none, and all its tags are 0.
local virtual, planned = tonumber(settings[2]), tonumber(settings[3])
local told, planned_before = virtual, planned

-- What this call knows of a group: its start tag, and the member under which it stands in `turns`.
local shares = {}
local function share(group)
    local g = shares[group]
    if not g then
        g = { turn = redis.call('HGET', lines, '@' .. group), start = 0 }
        if virtual then
            g.start = tonumber(g.turn and sub(g.turn, 5, 21)) or tonumber(redis.call('ZSCORE', finish, group)) or 0
        end
        shares[group] = g
    end
    return g
end

-- A group that had nothing to run meanwhile starts now. It cannot save its turns for later.
local function start_of(group) return max(virtual or 0, share(group).start) end

local function digits(place) return format('%016.0f', place + LOWEST) end
local function band_of(digits) return floor(tonumber(digits) / SPAN) end
local function turn_text(group, digits) return format('%04.0f%017.3f', band_of(digits), start_of(group)) end
local function group_of(line) return match(line, '^@([^\n]*)') or '' end

-- Give a group the turn that its first open line has, or none if it has no open line.
local function set_turn(group)
    local g = share(group)
    local first = redis.call('ZRANGE', open_lines, from(group), to(group), 'BYLEX', 'LIMIT', 0, 1)[1]
    local turn = first and turn_text(group, sub(first, #group + 2, #group + 17)) .. '\0' .. group or false
    if not turn and virtual and g.start > virtual then redis.call('ZADD', finish, g.start, group) end
    if turn == g.turn then return end
    if g.turn then redis.call('ZREM', turns, g.turn) end
    g.turn = turn
    if turn then
        redis.call('ZADD', turns, 0, turn)
        redis.call('HSET', lines, '@' .. group, turn)
    else
        redis.call('HDEL', lines, '@' .. group)
    end
end

local function first_of(line)
    return match(redis.call('ZRANGE', held_by, from(line), to(line), 'BYLEX', 'LIMIT', 0, 1)[1] or '', '^%z(%d+)', #line + 1)
end

-- Write where a line stands: in the open lines of its group, or under the key that it waits for. It stands at the place of its
-- first job. A line without a job is forgotten. The group's turn is for the caller to set.
local spots = {}
local function spot_of(line)
    if spots[line] == nil then spots[line] = redis.call('HGET', lines, '=' .. line) or false end
    return spots[line]
end
local function leave(line)
    local spot = spot_of(line)
    if spot then redis.call('ZREM', sub(spot, 1, 1) == 'o' and open_lines or full_lines, sub(spot, 2)) end
    redis.call('HDEL', lines, '=' .. line)
    spots[line] = false
end
local function stand(line, key, first)
    first = first or first_of(line)
    if not first then return leave(line) end
    local group, spot = group_of(line), nil
    if key then
        spot = 'f' .. key .. '\0' .. turn_text(group, first) .. '\0' .. first .. '\0' .. line
    else
        if group ~= '' and not virtual then virtual = 0 end
        spot = 'o' .. group .. '\0' .. first .. '\0' .. line
    end
    local before = spot_of(line)
    if before == spot then return end
    if before then redis.call('ZREM', sub(before, 1, 1) == 'o' and open_lines or full_lines, sub(before, 2)) end
    redis.call('ZADD', key and full_lines or open_lines, 0, sub(spot, 2))
    redis.call('HSET', lines, '=' .. line, spot)
    spots[line] = spot
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
            o.tokens = o.tokens - redis.call('ZREM', unspent, other .. '\0' .. job[2])
            if other ~= key then redis.call('ZADD', openings, '-inf', other) end
        end
        if k.count <= full then lowered = false end
        redis.call('ZREM', waiting, job[2])
        redis.call('ZADD', held, format('%.0f', job[1]), job[2])
        redis.call('ZADD', held_by, 0, names .. '\0' .. place .. '\0' .. job[2])
        redis.call('ZADD', arrivals, 'LT', format('%.0f', job[1]), names)
        -- The place of this job is free again, whatever else keeps the more urgent one from it.
        redis.call('ZADD', openings, '-inf', key)
    end
end

-- Jobs arrived in these lines. A line opens if it is new, or if its first job is more urgent than the one before.
local function see_arrivals()
    local arrived = redis.call('ZRANGE', arrivals, 0, looks - 1)
    if #arrived == 0 then return end
    redis.call('ZREM', arrivals, unpack(arrived))
    local touched = {}
    for _, line in ipairs(arrived) do
        local first, spot = first_of(line), spot_of(line)
        local group = group_of(line)
        if first then
            local stored = spot and match(spot, sub(spot, 1, 1) == 'o' and '^o[^%z]*%z(%d+)%z' or '^f[^%z]*%z[^%z]*%z(%d+)%z')
            if not stored or first < stored then
                stand(line, nil, first)
                touched[group] = true
            end
        elseif spot then
            leave(line)
            touched[group] = true
        end
    end
    for group in pairs(touched) do set_turn(group) end
end
see_arrivals()

-- A token, the end of a job or another rule opened these keys. As many of their lines open as the key has room for. The key
-- stays in openings while it has room and lines that wait for it.
local opened = redis.call('ZRANGE', reopens, '-inf', format('%.3f', now + 0.001), 'BYSCORE', 'LIMIT', 0, max(1, looks))
if #opened > 0 then
    redis.call('ZREM', reopens, unpack(opened))
    local marks = {}
    for i, key in ipairs(opened) do marks[2 * i - 1], marks[2 * i] = '-inf', key end
    redis.call('ZADD', openings, unpack(marks))
end
local function see_openings()
    for _, key in ipairs(redis.call('ZRANGE', openings, 0, max(0, looks - 1))) do
        local tries, moved, most = 16, 0, room(key)
        looks = looks - 1
        while true do
            local member = redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1)[1]
            if not member then
                redis.call('ZREM', openings, key)
                break
            end
            if most < 1 then
                close(key)
                break
            end
            if moved >= most then
                redis.call('ZREM', openings, key)
                break
            end
            if looks < 1 then return end
            local text, first, line = match(member, '^%z([^%z]*)%z(%d+)%z(.*)$', #key + 1)
            if not line or spot_of(line) ~= 'f' .. member then
                -- The line has moved on since, or the member is damaged.
                redis.call('ZREM', full_lines, member)
            else
                local group = group_of(line)
                local true_text = tries > 0 and turn_text(group, first) or text
                if text < true_text then
                    -- The group had its turn meanwhile, under another key.
                    tries = tries - 1
                    stand(line, key, first)
                else
                    stand(line, nil)
                    set_turn(group)
                    if spot_of(line) then moved = moved + 1 end
                    looks = looks - 1
                end
            end
        end
    end
end
see_openings()

-- What a claim takes from waiting comes in between. In a queue with groups, jobs without a group are those of one more group. They
-- are in waiting already, so their turns are only counted. `planned` is the place of the last one that was counted.
local last = redis.call('ZRANGE', waiting, max(0, want - 1), max(0, want - 1), 'WITHSCORES')
local horizon = not virtual and last[2] and digits(last[2]) or LAST
local heads, at_head = {}, 1
if virtual and want > 0 then
    local found = redis.call('ZRANGE', waiting, 0, want - 1, 'WITHSCORES')
    local ids = {}
    for i = 1, #found, 2 do ids[#ids + 1] = found[i] end
    local names = #ids > 0 and redis.call('HMGET', limits, unpack(ids)) or {}
    for i = 1, #ids do
        local score = tonumber(found[2 * i])
        local counted = names[i] and group_of(names[i]) ~= '' or planned and score <= planned and band_of(digits(score)) == band_of(digits(planned))
        heads[i] = { score = score, counted = counted, digits = digits(score) }
    end
end

local n, ready, ids, places, tokens, gone, count = 0, {}, {}, {}, {}, {}, 0
local function admit(keys, place, id)
    local slots = slots_of(id)
    n, count = n + slots, count + 1
    local head = heads[at_head]
    -- It goes before the jobs without a group whose turn comes later.
    if head and band_of(head.digits) == band_of(digits(place)) and head.score <= place then place = head.score - 1 end
    ready[2 * count - 1], ready[2 * count], ids[count] = format('%.0f', place), id, id
    for _, key in ipairs(keys) do
        local k = facts(key)
        k.count = k.count + slots
        places[#places + 1], places[#places + 2] = 0, key .. '\0' .. id
        for slot = 2, slots do places[#places + 1], places[#places + 2] = 0, key .. '\0' .. id .. '\0' .. slot end
        if k.rule.bands[1] then
            k.tokens = k.tokens + 1
            tokens[#tokens + 1], tokens[#tokens + 2] = 0, key .. '\0' .. id
        end
    end
end

-- Whether another line waits for the key whose turn is earlier. Its job may need more slots than are free, and jobs that need fewer
-- must not overtake it for ever.
local function ahead(key, line, first)
    local member = heavy and redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1)[1]
    return member and sub(member, #key + 2) < turn_text(group_of(line), first) .. '\0' .. first
end

-- The first key that has no room for a job, which is the first one of its line.
local function full_key(keys, line, first, id)
    for _, key in ipairs(keys) do
        if not fits(key, id) then displace(key, line, first, id) end
        if not fits(key, id) or ahead(key, line, first) then return key end
    end
    return nil
end

-- Admit the most urgent jobs of one line, up to the place of the group's next line, and while the group's turn lasts. Jobs of
-- another priority have another turn.
local function serve_line(group, line, keys, band, bound, rival)
    local g, most, full = share(group), min(want - n, looks + 1, 64), nil
    local page = redis.call('ZRANGE', held_by, from(line), to(line), 'BYLEX', 'LIMIT', 0, most + 1)
    local taken, next_first = {}, nil
    for i, member in ipairs(page) do
        local first, id = match(member, '^%z(%d+)%z(.*)$', #line + 1)
        next_first = first
        if i > most or n >= want or first > bound or band_of(first) > band then break end
        if virtual and start_of(group) > rival then break end
        full = full_key(keys, line, first, id)
        if full then break end
        looks = looks - 1
        taken[i], next_first = member, nil
        admit(keys, tonumber(first) - LOWEST, id)
        if virtual then
            virtual = start_of(group)
            g.start = virtual + 1 / group_row(group).weight
        end
    end
    if #taken > 0 then redis.call('ZREM', held_by, unpack(taken)) end
    if full then
        stand(line, full)
        close(full)
        -- Another line may use the room that this one left under its other keys.
        for _, key in ipairs(keys) do
            if key ~= full and sub(key, 1, 1) ~= '@' and room(key) > 0 then redis.call('ZADD', openings, '-inf', key) end
        end
    elseif next_first then
        stand(line, nil, next_first)
    else
        leave(line)
        if #page == 0 then
            for _, key in ipairs(keys) do
                if sub(key, 1, 1) ~= '@' then redis.call('ZADD', openings, '-inf', key) end
            end
        end
    end
end

local split = {}
local function keys_of(line)
    if not split[line] then
        local keys = {}
        for key in gmatch(line, '[^\n]+') do keys[#keys + 1] = key end
        split[line] = keys
    end
    return split[line]
end

local left = 0
while true do
    local top = redis.call('ZRANGE', turns, '-', '+', 'BYLEX', 'LIMIT', 0, 2)
    local text, group = match(top[1] or '', '^([^%z]*)%z(.*)$')
    if not text then
        -- A damaged member would stop all turns.
        if top[1] then redis.call('ZREM', turns, top[1]) else break end
    elseif n >= want or looks < 1 then
        left = 1
        break
    else
        local band = tonumber(sub(text, 1, 4)) or 0
        local found = redis.call('ZRANGE', open_lines, from(group), to(group), 'BYLEX', 'LIMIT', 0, 2)
        local first, line = match(found[1] or '', '^%z(%d+)%z(.*)$', #group + 1)
        local bound = match(found[2] or '', '^%z(%d+)', #group + 1) or LAST
        local head = heads[at_head]
        if share(group).turn ~= top[1] or not line then
            redis.call('ZREM', turns, top[1])
            if share(group).turn == top[1] then share(group).turn = false end
            set_turn(group)
            looks = looks - 1
        elseif band_of(first) ~= band or turn_text(group, first) > text then
            set_turn(group)
            looks = looks - 1
        elseif first > horizon then
            break
        elseif head and (band_of(head.digits) < band or band_of(head.digits) == band and (head.counted
            or group == '' and head.digits < first or group ~= '' and start_of('') <= start_of(group))) then
            at_head, n = at_head + 1, n + 1
            if not head.counted then
                virtual, planned = start_of(''), head.score
                share('').start = virtual + 1 / group_row('').weight
                set_turn('')
            end
        else
            looks = looks - 1
            -- The group's turn lasts until the start tag of the next one.
            local rival = huge
            if virtual then
                local other, name = match(top[2] or '', '^([^%z]*)%z(.*)$')
                if head and not head.counted and group ~= '' and band_of(head.digits) == band then rival = start_of('') end
                if other and tonumber(sub(other, 1, 4)) == band then rival = min(rival, start_of(name)) end
            end
            if bound > horizon then bound = horizon end
            if head and group == '' and bound > head.digits then bound = head.digits end
            serve_line(group, line, keys_of(line), band, bound, rival)
            set_turn(group)
        end
    end
end

if count > 0 then
    redis.call('ZREM', held, unpack(ids))
    if #places > 0 then redis.call('ZADD', admitted, unpack(places)) end
    if #tokens > 0 then redis.call('ZADD', unspent, unpack(tokens)) end
    redis.call('ZADD', waiting, unpack(ready))
end
if virtual ~= told then redis.call('HSET', meta, 'virtual', format('%.3f', virtual)) end
if planned ~= planned_before then redis.call('HSET', meta, 'planned', format('%.0f', planned)) end
if redis.call('EXISTS', openings, arrivals) > 0 then left = 1 end
if claims == '0' and (count > 0 or redis.call('EXISTS', waiting) == 1) or claims ~= '2' and left == 1 then redis.call('ZADD', wake, 0, 't') end
local next_token = redis.call('ZRANGE', reopens, 0, 0, 'WITHSCORES')
return { count, next_token[2] and max(0, math.ceil(tonumber(next_token[2]) - now - 0.001)) or -1, left }
