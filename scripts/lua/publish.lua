#!lua flags=allow-oom
-- publish: writes the types that a worker or server knows, with options and schema, for producers without the code.
-- KEYS types types_seen
-- ARGV now, publisher, 1 if the publisher has just started (its rows then come first; else they keep their place), most
--   types of a queue, ms after which the row of a silent publisher is dropped; then pairs: type, row (JSON)
-- RETURNS flat triples type, publisher, row: the different rows of other publishers
-- The value of a type has up to 4 lines "seen <tab> publisher <tab> row" with different rows. Producers use the first one.
local types, types_seen = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local publisher, started, most, kept = ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), tonumber(ARGV[5])
local differing = {}
for i = 6, #ARGV, 2 do
    local name, row = ARGV[i], ARGV[i + 1]
    local stored = redis.call('HGET', types, name)
    if stored or redis.call('HLEN', types) < most then
        local ours, lines, place = table.concat({ string.format('%.0f', now), publisher, row }, '\t'), {}, nil
        for line in string.gmatch(stored or '', '[^\n]+') do
            local seen, other, theirs = string.match(line, '^(%d+)\t([^\t]*)\t(.*)$')
            if theirs == row then
                place = #lines + 1
            elseif seen and tonumber(seen) > now - kept and #lines < 3 then
                lines[#lines + 1] = line
                local n = #differing
                differing[n + 1], differing[n + 2], differing[n + 3] = name, other, theirs
            end
        end
        table.insert(lines, started and 1 or place or #lines + 1, ours)
        redis.call('HSET', types, name, table.concat(lines, '\n'))
        redis.call('ZADD', types_seen, now, name)
    end
end
return differing
