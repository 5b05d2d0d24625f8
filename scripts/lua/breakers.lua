#!lua flags=no-writes
-- breakers: reads the circuit breakers of the queue.
-- KEYS breakers full_lines held_by admitted
-- ARGV now, largest number of lines of held jobs to look at
-- RETURNS now; flat groups of four: type, row (see breaker.lua), held jobs, jobs that were admitted and have not ended
-- Beyond the largest number of lines each one counts as one job.
local breakers, full_lines, held_by, admitted = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local looks = tonumber(ARGV[2])

local function number(set, from, to) return redis.call('ZLEXCOUNT', set, from, to) end

local rows = {}
local found = redis.call('HGETALL', breakers)
for i = 1, #found, 2 do
    local from, to, n = '[!' .. found[i] .. '\0', '(!' .. found[i] .. '\1', #rows
    local lines = looks > 0 and redis.call('ZRANGE', full_lines, from, to, 'BYLEX', 'LIMIT', 0, looks) or {}
    local held = number(full_lines, from, to) - #lines
    looks = looks - #lines
    for _, member in ipairs(lines) do
        local line = string.match(member, '^[^%z]*%z[^%z]*%z%d+%z(.*)$')
        if line then held = held + number(held_by, '[' .. line .. '\0', '(' .. line .. '\1') end
    end
    rows[n + 1], rows[n + 2], rows[n + 3], rows[n + 4] = found[i], found[i + 1], held, number(admitted, from, to)
end
return { now, rows }
