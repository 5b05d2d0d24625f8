#!lua flags=no-writes
-- limits: reads the rules of limits, or the keys of one rule that hold or count jobs now, or that are closed.
-- KEYS rules held_by admitted arrivals lines open_lines full_lines reopens active closed meta
-- ARGV now, rule ('': all rules), largest number of keys, largest number of lines to look at
-- RETURNS flat groups of six: rule, its two lines, held jobs, admitted jobs, closed keys ("by handlers, by
--   operators", two numbers), and when the last of these opens (unix ms, or ''); or for a rule's keys of five: key, held jobs, admitted jobs, when its next token is free (unix ms, or '' if nothing
--   waits for one), and until when it is closed (unix ms, or '')
-- Of the closed keys it looks at those that open last, as many as it may return.
-- Each line of held jobs counts under the key that it waits for. A line that waits for nothing, because no worker was free to
-- admit its jobs, counts under its first key. Beyond the largest number of lines each one counts as one job.
local rules, held_by, admitted, arrivals, lines, open_lines, full_lines, reopens, active, closed, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local rule, most, looks = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local shut = redis.call('ZRANGE', closed, '+inf', string.format('(%.0f', now), 'BYSCORE', 'REV', 'LIMIT', 0, most, 'WITHSCORES')

local function number(set, from, to) return redis.call('ZLEXCOUNT', set, from, to) end

local function jobs_of(line) return number(held_by, '[' .. line .. '\0', '(' .. line .. '\1') end

-- The lines that wait for nothing: key -> jobs.
local free = {}
local function add(line)
    local key = string.match(string.gsub(line, '^@[^\n]*\n?', ''), '^[^\n]+')
    if key then free[key] = (free[key] or 0) + jobs_of(line) end
end
for _, line in ipairs(redis.call('ZRANGE', arrivals, 0, looks - 1)) do
    if redis.call('HEXISTS', lines, '=' .. line) == 0 then add(line) end
end
for _, member in ipairs(redis.call('ZRANGE', open_lines, 0, looks - 1)) do
    local line = string.match(member, '^[^%z]*%z%d+%z(.*)$')
    if line then add(line) end
end
-- How many jobs stand in the lines of these keys.
local function held_under(from, to)
    local found = looks > 0 and redis.call('ZRANGE', full_lines, from, to, 'BYLEX', 'LIMIT', 0, looks) or {}
    local jobs = number(full_lines, from, to) - #found
    looks = looks - #found
    for _, member in ipairs(found) do
        local line = string.match(member, '^[^%z]*%z[^%z]*%z%d+%z(.*)$')
        if line then jobs = jobs + jobs_of(line) end
    end
    return jobs
end

local rows = {}
if rule == '' then
    local count, set, last = {}, {}, {}
    for i = 1, #shut, 2 do
        local name = string.match(shut[i], '^[^:]*')
        -- See close.lua.
        local of = tonumber(shut[i + 1]) % 1 == 0 and count or set
        of[name], last[name] = (of[name] or 0) + 1, last[name] or shut[i + 1]
    end
    local found = redis.call('HGETALL', rules)
    for i = 1, #found, 2 do
        local name, n = found[i], #rows
        rows[n + 1], rows[n + 2] = name, found[i + 1]
        rows[n + 3] = held_under('[' .. name .. '\0', '(' .. name .. '\1') + held_under('[' .. name .. ':', '(' .. name .. ';')
        for key, jobs in pairs(free) do
            if string.match(key, '^[^:]*') == name then rows[n + 3] = rows[n + 3] + jobs end
        end
        rows[n + 5], rows[n + 6] = (count[name] or 0) .. ' ' .. (set[name] or 0), last[name] or ''
        rows[n + 4] = number(admitted, '[' .. name .. '\0', '(' .. name .. '\1') + number(admitted, '[' .. name .. ':', '(' .. name .. ';')
        -- The rule of the whole queue holds no job, and counts the slots of all that are active.
        if name == 'queue' then
            rows[n + 4] = rows[n + 4] + redis.call('ZCARD', active)
            local till = redis.call('HGET', meta, 'closed') or ''
            if (tonumber(till) or 0) > now then rows[n + 5], rows[n + 6] = '0 1', till end
        end
    end
    return rows
end

-- The keys are the name alone, and the name with a colon and a value.
local keys, seen = {}, {}
local function found(key)
    if #keys < most and not seen[key] then
        seen[key] = true
        keys[#keys + 1] = key
    end
end
for key in pairs(free) do
    if string.match(key, '^[^:]*') == rule then found(key) end
end
-- Jump from one key of a set to the next.
for _, set in ipairs({ full_lines, admitted }) do
    for _, span in ipairs({ { '[' .. rule .. '\0', '(' .. rule .. '\1' }, { '[' .. rule .. ':', '(' .. rule .. ';' } }) do
        local start = span[1]
        while #keys < most do
            local member = redis.call('ZRANGE', set, start, span[2], 'BYLEX', 'LIMIT', 0, 1)[1]
            if not member then break end
            local key = string.match(member, '^[^%z]+')
            found(key)
            start = '[' .. key .. '\1'
        end
    end
end
for i = 1, #shut, 2 do
    if string.match(shut[i], '^[^:]*') == rule then found(shut[i]) end
end
for _, key in ipairs(keys) do
    local from, to, n = '[' .. key .. '\0', '(' .. key .. '\1', #rows
    rows[n + 1], rows[n + 2], rows[n + 3] = key, held_under(from, to) + (free[key] or 0), number(admitted, from, to)
    local till = redis.call('ZSCORE', closed, key)
    rows[n + 4], rows[n + 5] = redis.call('ZSCORE', reopens, key) or '', till and tonumber(till) > now and till or ''
end
return rows
