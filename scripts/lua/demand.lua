#!lua flags=no-writes
-- demand: reads how many jobs could run now if there were workers, for a queue with limits or groups.
-- KEYS waiting delayed active held held_by arrivals lines open_lines admitted rules closed groups meta
-- ARGV now, most lines to look at
-- RETURNS now; waiting jobs; delayed jobs that are due; active jobs; held jobs; paused since or closed until (ms, or nil);
--   flat pairs of lines that wait for no limit: line, jobs; flat groups of four of their keys, and of "queue": key, rule, jobs that
--   count under it, 1 if it is closed
-- Lines of paused groups are left out. Beyond the largest number of lines, jobs are left out.
local waiting, delayed, active, held, held_by, arrivals, lines, open_lines, admitted, rules, closed, groups, meta = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local most, found, seen, keys, known = tonumber(ARGV[2]), {}, {}, {}, {}
local function number(set, from, to) return redis.call('ZLEXCOUNT', set, from, to) end

local function add_key(key)
    if known[key] then return end
    known[key] = true
    local row = redis.call('HGET', rules, string.match(key, '^[^:]*')) or ''
    local till = tonumber(redis.call('ZSCORE', closed, key) or 0)
    -- A breaker whose time is over lets one job through, which is the first one that counts under it.
    local count = key == 'queue' and redis.call('ZCARD', active) or number(admitted, '[' .. key .. '\0', '(' .. key .. '\1')
    local n = #keys
    keys[n + 1], keys[n + 2], keys[n + 3] = key, string.match(row, '^[^\n]+') or string.match(row, '\n([^\n]+)') or '', count
    keys[n + 4] = till > now and 1 or 0
end

local function add(line)
    if not line or seen[line] or #found >= 2 * most then return end
    seen[line] = true
    local group = string.match(line, '^@([^\n]*)')
    if group and string.match(redis.call('HGET', groups, group) or '', '^%S+ 1') then return end
    found[#found + 1], found[#found + 2] = line, number(held_by, '[' .. line .. '\0', '(' .. line .. '\1')
    for key in string.gmatch(string.gsub(line, '^@[^\n]*\n?', ''), '[^\n]+') do add_key(key) end
end
if redis.call('EXISTS', held) == 1 then
    for _, line in ipairs(redis.call('ZRANGE', arrivals, 0, most - 1)) do
        local row = redis.call('HGET', lines, '=' .. line)
        if not row or string.byte(row) == 111 then add(line) end
    end
    for _, member in ipairs(redis.call('ZRANGE', open_lines, 0, most - 1)) do
        add(string.match(member, '^[^%z]*%z%d+%z(.*)$'))
    end
end
add_key('queue')
local facts = redis.call('HMGET', meta, 'paused', 'closed')
return {
    now, redis.call('ZCARD', waiting), redis.call('ZCOUNT', delayed, '-inf', now), redis.call('ZCARD', active),
    redis.call('ZCARD', held), facts[1] or (tonumber(facts[2]) or 0) > now and facts[2] or false, found, keys,
}
