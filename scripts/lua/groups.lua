#!lua flags=no-writes
-- groups: reads groups that have held, waiting or active jobs, one page per call, in the order of their names.
-- KEYS held_by admitted groups jobs
-- ARGV the last group of the page before ('' in the first call), page (largest number of groups), the only group to read ('': all)
-- RETURNS flat groups of six: group, held jobs, waiting and active jobs, its settings ('': none), the first held job and its spec
--   up to its payload ('' and '' if there is none)
-- When the page is full there may be more groups.
local held_by, admitted, groups, jobs = unpack(KEYS)
local after, page, only = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local start, rows = after == '' and '[@' .. only or '[@' .. after .. '\11', {}

-- The lines of a group are "@group", or "@group" and keys behind a line break, which sorts below a vertical tab.
local function next_group(set)
    local member = redis.call('ZRANGE', set, start, '(A', 'BYLEX', 'LIMIT', 0, 1)[1]
    return member and string.match(member, '^@([^%z\n]*)'), member
end
-- Lua compares texts by the server's locale, and a sorted set by their bytes.
local function before(a, b)
    for i = 1, math.min(#a, #b) do
        local x, y = string.byte(a, i), string.byte(b, i)
        if x ~= y then return x < y end
    end
    return #a < #b
end
local function number(set, from, to) return redis.call('ZLEXCOUNT', set, from, to) end

while #rows < 6 * page do
    local a, first = next_group(held_by)
    local b = next_group(admitted)
    local group = a and b and (before(a, b) and a or b) or a or b
    if not group or only ~= '' and group ~= only then break end
    local n, id, spec = #rows, '', ''
    if a == group then
        id = string.match(first, '%z%d+%z(.*)$') or ''
        -- A large spec would take long to read. Then the time in the id has to do.
        spec = redis.call('HSTRLEN', jobs, id) < 65536 and redis.call('HGET', jobs, id) or ''
        spec = string.sub(spec, 1, (string.find(spec, ',"payload":', 1, true) or 1) - 1)
    end
    local from = '[@' .. group
    rows[n + 1], rows[n + 2] = group, number(held_by, from .. '\0', '(@' .. group .. '\1') + number(held_by, from .. '\n', '(@' .. group .. '\11')
    rows[n + 3] = number(admitted, from .. '\0', '(@' .. group .. '\1')
    rows[n + 4], rows[n + 5], rows[n + 6] = redis.call('HGET', groups, group) or '', id, spec
    start = from .. '\11'
end
return rows
