#!lua flags=no-writes
-- limits: reads the rules of limits, or the keys of one rule that hold or count jobs now.
-- KEYS rules held_by admitted full_lines reopens active
-- ARGV rule ('': all rules), largest number of keys, largest number of lines to look at
-- RETURNS flat groups of four: rule, its two lines, held jobs, admitted jobs; or for a rule's keys: key, held jobs, admitted
--   jobs, when its next token is free (unix ms, or '' if nothing waits for one)
-- A line of held jobs counts under the key that it waits for. Beyond the largest number of lines each one counts as one job.
local rules, held_by, admitted, full_lines, reopens, active = unpack(KEYS)
local rule, most, looks = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function number(set, from, to) return redis.call('ZLEXCOUNT', set, from, to) end

-- How many jobs stand in the lines of these keys.
local function held_under(from, to)
    local found = looks > 0 and redis.call('ZRANGE', full_lines, from, to, 'BYLEX', 'LIMIT', 0, looks) or {}
    local jobs = number(full_lines, from, to) - #found
    looks = looks - #found
    for _, member in ipairs(found) do
        local line = string.match(member, '^[^%z]*%z[^%z]*%z%d+%z(.*)$')
        if line then jobs = jobs + number(held_by, '[' .. line .. '\0', '(' .. line .. '\1') end
    end
    return jobs
end

local rows = {}
if rule == '' then
    local found = redis.call('HGETALL', rules)
    for i = 1, #found, 2 do
        local name, n = found[i], #rows
        rows[n + 1], rows[n + 2] = name, found[i + 1]
        rows[n + 3] = held_under('[' .. name .. '\0', '(' .. name .. '\1') + held_under('[' .. name .. ':', '(' .. name .. ';')
        rows[n + 4] = number(admitted, '[' .. name .. '\0', '(' .. name .. '\1') + number(admitted, '[' .. name .. ':', '(' .. name .. ';')
        -- The rule of the whole queue holds no job, and counts all that are active.
        if name == 'queue' then rows[n + 4] = redis.call('ZCARD', active) end
    end
    return rows
end

-- The keys are the name alone, and the name with a colon and a value. Jump from one to the next in both sets at once.
local function first_of(set, start, stop)
    local member = redis.call('ZRANGE', set, start, stop, 'BYLEX', 'LIMIT', 0, 1)[1]
    return member and string.match(member, '^[^%z]+')
end
for _, span in ipairs({ { '[' .. rule .. '\0', '(' .. rule .. '\1' }, { '[' .. rule .. ':', '(' .. rule .. ';' } }) do
    local start = span[1]
    while #rows < 4 * most do
        local a, b = first_of(full_lines, start, span[2]), first_of(admitted, start, span[2])
        local key = a and b and (a < b and a or b) or a or b
        if not key then break end
        local from, to, n = '[' .. key .. '\0', '(' .. key .. '\1', #rows
        rows[n + 1], rows[n + 2], rows[n + 3] = key, held_under(from, to), number(admitted, from, to)
        rows[n + 4] = redis.call('ZSCORE', reopens, key) or ''
        start = '[' .. key .. '\1'
    end
end
return rows
