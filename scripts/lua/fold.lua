#!lua flags=allow-oom
-- fold: adds what was counted in five minutes that are over to the history of its type, and to that of all types. It also notes
-- from time to time how many jobs have arrived so far.
-- KEYS metrics history meta
-- ARGV now, largest number of types
-- RETURNS the number of types; a number below the largest means done
--   The rows of history are text. Each line has a unit, the number of its interval and what was counted: "f 5666666 run17=4 run_us=81".
--   Units: f five minutes, kept for one hour; h hours, for a day; q six hours, for a week; t all of the past, with the number 0.
--   Each count is either in `metrics` or in all four units. So a reader that reads both in one step counts nothing twice.
local metrics, history, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local most, floor, format, match = tonumber(ARGV[2]), math.floor, string.format, string.match
local interval = floor(now / 300000)
local UNITS = { f = { 1, 12 }, h = { 12, 24 }, q = { 72, 28 } }
local ALL, OTHER, TYPES = '', '\t', 256

-- `fifo` counts the places given to jobs. The rate of arrivals is the difference of two notes.
local facts = redis.call('HMGET', meta, 'fifo', 'later', 'arrived')
local last = tonumber(match(facts[3] or '', '^(%d+)') or '')
if facts[1] and (not last or now - last >= 30000 or last > now) then
    local notes = { format('%.0f:%.0f', now, (tonumber(facts[1]) or 0) - (tonumber(facts[2]) or 0)) }
    for at, total in string.gmatch(facts[3] or '', '(%d+):(%-?%d+)') do
        if #notes < 16 and tonumber(at) <= now and tonumber(at) > now - 480000 then notes[#notes + 1] = at .. ':' .. total end
    end
    redis.call('HSET', meta, 'arrived', table.concat(notes, ' '))
end

-- The lines of a row that are not too old: "unit number" -> what -> count.
local function read(kind)
    local lines = {}
    for unit, at, counts in string.gmatch((redis.call('HGET', history, kind) or '') .. '\n', '([fhqt]) (%d+) ([^\n]*)\n') do
        if unit == 't' or tonumber(at) >= floor(interval / UNITS[unit][1]) - UNITS[unit][2] then
            local line = {}
            for what, n in string.gmatch(counts, '(%S+)=(%d+)') do line[what] = tonumber(n) end
            lines[unit .. ' ' .. at] = line
        end
    end
    return lines
end

local function add(lines, name, what, n)
    lines[name] = lines[name] or {}
    lines[name][what] = (lines[name][what] or 0) + n
end

local function write(kind, lines)
    local rows = {}
    for name, line in pairs(lines) do
        local words = {}
        for what, n in pairs(line) do words[#words + 1] = what .. format('=%.0f', n) end
        table.sort(words)
        rows[#rows + 1] = name .. ' ' .. table.concat(words, ' ')
    end
    table.sort(rows)
    redis.call('HSET', history, kind, table.concat(rows, '\n'))
end

local kinds, fields = {}, {}
for _, field in ipairs(redis.call('HKEYS', metrics)) do
    local at, kind = match(field, '^s:(%d+):[%l_]+%d*:(.+)$')
    if at and tonumber(at) ~= interval then
        if not fields[kind] and #kinds < most then
            kinds[#kinds + 1], fields[kind] = kind, {}
        end
        local some = fields[kind]
        if some and #some < 2000 then some[#some + 1] = field end
    end
end
if #kinds == 0 then return 0 end
-- Removes a type that has not run for a week, so that a new one has room. Its runs of all time then count as other ones.
local old
local function make_room()
    if not old then
        old = {}
        local rows = redis.call('HGETALL', history)
        for i = 1, #rows, 2 do
            local last = tonumber(match(rows[i + 1], 'q (%d+) [^\n]*\nt 0 ') or '') or 0
            local kept = rows[i] == ALL or rows[i] == OTHER or fields[rows[i]]
            if not kept and last < floor(interval / UNITS.q[1]) - UNITS.q[2] then old[#old + 1] = rows[i] end
        end
    end
    local kind = table.remove(old)
    if not kind then return false end
    local lines = read(OTHER)
    for what, n in pairs(read(kind)['t 0'] or {}) do add(lines, 't 0', what, n) end
    write(OTHER, lines)
    redis.call('HDEL', history, kind)
    return true
end

local all = read(ALL)
for _, kind in ipairs(kinds) do
    local some = fields[kind]
    -- Only code has names of types. The bound is for code that makes names at random.
    if redis.call('HEXISTS', history, kind) == 0 and redis.call('HLEN', history) > TYPES and not make_room() then kind = OTHER end
    local lines = read(kind)
    for i, n in ipairs(redis.call('HMGET', metrics, unpack(some))) do
        local at, what = match(some[i], '^s:(%d+):([%l_]+%d*):')
        n = math.max(tonumber(n) or 0, 0)
        for _, to in ipairs({ lines, all }) do
            for unit, size in pairs(UNITS) do add(to, unit .. format(' %.0f', floor(at / size[1])), what, n) end
            add(to, 't 0', what, n)
        end
    end
    write(kind, lines)
    redis.call('HDEL', metrics, unpack(some))
end
write(ALL, all)
return #kinds
