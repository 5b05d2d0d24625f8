#!lua flags=allow-oom
-- expire: deduplication keys whose time is over, and the counts of minutes long past, go.
-- KEYS unique unique_until metrics
-- ARGV now, page, minutes to keep
-- RETURNS how many keys went; fewer than page: done
local unique, unique_until, metrics = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local over = redis.call('ZRANGE', unique_until, '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
if #over > 0 then
    redis.call('HDEL', unique, unpack(over))
    redis.call('ZREM', unique_until, unpack(over))
end
local oldest, old = math.floor(now / 60000) - tonumber(ARGV[3]), {}
for _, field in ipairs(redis.call('HKEYS', metrics)) do
    local minute = string.match(field, '^m:(%d+):')
    if minute and tonumber(minute) < oldest and #old < 5000 then old[#old + 1] = field end
end
if #old > 0 then redis.call('HDEL', metrics, unpack(old)) end
return #over
