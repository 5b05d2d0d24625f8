#!lua flags=allow-oom
-- expire: removes deduplication keys whose ttl is over, old recorded answers, ids of jobs that were removed two minutes ago,
--   the metrics of past minutes, types that nobody has published for a day, rates that were quiet for long enough,
--   and the closing times of limit keys that are open again;
--   blocked -> delayed, due: jobs that wait for another one that has ended.
-- KEYS unique unique_until requests answers removed metrics types types_seen spent debts closed blocked keys waiting delayed active held wake
-- ARGV now, page, minutes to keep
-- RETURNS the number of keys, of answers, of ids, of rates or of closing times that were removed, whichever is larger; a number below `page` means done
local unique, unique_until, requests, answers, removed, metrics, types, types_seen, spent, debts, closed, blocked, keys, waiting, delayed, active, held, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local over = redis.call('ZRANGE', unique_until, '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
if #over > 0 then
    redis.call('HDEL', unique, unpack(over))
    redis.call('ZREM', unique_until, unpack(over))
end
local answered = redis.call('ZRANGE', requests, '-inf', now - 120000, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
if #answered > 0 then
    redis.call('HDEL', answers, unpack(answered))
    redis.call('ZREM', requests, unpack(answered))
end
local gone = redis.call('ZRANGE', removed, '-inf', now - 120000, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
if #gone > 0 then redis.call('ZREM', removed, unpack(gone)) end
-- From its arrival time on, a key of a rate has all its tokens, as if it had never been used.
local quiet = redis.call('ZRANGE', spent, '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]))
if #quiet > 0 then
    redis.call('ZREM', spent, unpack(quiet))
    redis.call('HDEL', debts, unpack(quiet))
end
-- The time of a breaker stays until a run closes it. There are 1,000 breakers at most.
local open = {}
for _, key in ipairs(redis.call('ZRANGE', closed, '-inf', now, 'BYSCORE', 'LIMIT', 0, tonumber(ARGV[2]) + 1000)) do
    if string.byte(key) ~= 33 and #open < tonumber(ARGV[2]) then open[#open + 1] = key end
end
if #open > 0 then redis.call('ZREM', closed, unpack(open)) end
local unheard = redis.call('ZRANGE', types_seen, '-inf', now - 86400000, 'BYSCORE', 'LIMIT', 0, 100)
if #unheard > 0 then
    redis.call('HDEL', types, unpack(unheard))
    redis.call('ZREM', types_seen, unpack(unheard))
end
-- Such a job waits for the end of another one with its key. A worker that claimed that one before the queue had such jobs does not
-- release it. Without this check it would wait for ever.
for _, id in ipairs(redis.call('EXISTS', blocked) == 1 and redis.call('ZRANDMEMBER', blocked, 100) or {}) do
    local awaited = false
    for key in string.gmatch((redis.call('HGET', keys, id) or '') .. '\n', '([^\t\n]+)\n') do
        local last, other = string.match(redis.call('HGET', unique, key) or '', '^(%S+) %S+ %S+ (%S+)$')
        for _, set in ipairs(last == id and { waiting, delayed, active, held, blocked } or {}) do
            awaited = awaited or redis.call('ZSCORE', set, other)
        end
    end
    if not awaited then
        local due = tonumber(redis.call('ZSCORE', blocked, id))
        redis.call('ZREM', blocked, id)
        redis.call('ZADD', delayed, math.max(now, due), id)
        redis.call('ZADD', wake, 0, 't')
    end
end
local oldest, old = math.floor(now / 60000) - tonumber(ARGV[3]), {}
for _, field in ipairs(redis.call('HKEYS', metrics)) do
    local minute = tonumber(string.match(field, '^m:(%d+):'))
    if minute and minute < oldest and #old < 5000 then old[#old + 1] = field end
end
if #old > 0 then redis.call('HDEL', metrics, unpack(old)) end
return math.max(#quiet, #over, #answered, #gone, #open)
