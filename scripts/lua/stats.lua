#!lua flags=no-writes
-- stats: reads the sizes, the oldest waiting jobs and the metrics of a queue.
-- KEYS waiting delayed active completed failed blocked held jobs attempts meta workers metrics history
-- ARGV now, alive ms (a worker counts as alive for this long after a heartbeat)
-- RETURNS now; the seven sizes in the order of KEYS; paused since (ms, or nil); closed until (ms, or nil); workers alive;
--   flat triples id, attempts, spec up to its payload, for the jobs of each priority that may have waited longest;
--   due time of the first delayed job (or nil); flat pairs of metrics: totals, the last 60 minutes, and what was counted of
--   all types together but is not in their history yet; their row of history; the same triples for held jobs;
--   how much waiting a step of priority is worth (ms; nil or 0: priorities are absolute)
local waiting, delayed, active, completed, failed, blocked, held, jobs, attempts, meta, workers, metrics, history = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local SPAN, MIDDLE, format = 4398046511104, 2199023255552, string.format

-- shared: head of a spec
-- Quotes inside a JSON string are escaped. So these marks match only where a field begins.
local function head(spec)
    local payload = string.find(spec, ',"payload":', 1, true)
    local text = payload and string.sub(spec, 1, payload - 1) or spec
    local metadata = string.find(text, ',"metadata":', 1, true)
    if metadata then text = string.sub(text, 1, metadata - 1) end
    return (payload or metadata) and text .. '}' or string.sub(text, 1, 4096)
end
-- end

-- shared: aging
-- How much waiting a step of priority is worth, in ms, as `meta` has it. 0, or a damaged value: priorities are absolute.
local function aging_of(text)
    local ms = tonumber(text)
    return ms and ms >= 1 and ms <= 86400000 and ms or 0
end
-- end

local aging = redis.call('HGET', meta, 'aging')
local aged = aging_of(aging) > 0

-- FIFO jobs come after the middle of a priority, the oldest first. LIFO and released jobs come before it, the oldest last. The
-- oldest job may have a low priority, so look at the ends of each priority, up to 64 priorities and 1 MB of specs.
-- With aging the first jobs have waited longest, except for more urgent ones that go before their turn.
local function oldest_of(set)
    local oldest, bytes, from = {}, 0, '-inf'
    local function look(id)
        if not id then return end
        local spec, n = redis.call('HGET', jobs, id) or '', #oldest
        oldest[n + 1], oldest[n + 2], oldest[n + 3] = id, redis.call('HGET', attempts, id), head(spec)
        bytes = bytes + #spec
    end
    for _, id in ipairs(aged and redis.call('ZRANGE', set, 0, 31) or {}) do
        if bytes <= 1000000 then look(id) end
    end
    for _ = 1, aged and 0 or 64 do
        local first = redis.call('ZRANGE', set, from, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
        if not first[1] or bytes > 1000000 then break end
        local start = math.floor(tonumber(first[2]) / SPAN) * SPAN
        local middle, stop = format('%.0f', start + MIDDLE), format('%.0f', start + SPAN)
        if tonumber(first[2]) < start + MIDDLE then
            look(redis.call('ZRANGE', set, '(' .. middle, format('%.0f', start), 'BYSCORE', 'REV', 'LIMIT', 0, 1)[1])
            look(redis.call('ZRANGE', set, middle, '(' .. stop, 'BYSCORE', 'LIMIT', 0, 1)[1])
        else
            look(first[1])
        end
        from = stop
    end
    return oldest
end

local TOTALS = {}
for _, name in ipairs({ 'completed', 'failed', 'retried', 'unserved', 'snoozed', 'rate_limited', 'duplicates', 'expired', 'dropped', 'replaced_oldest', 'killed_running' }) do
    TOTALS[name] = true
end
local found, counts, flat, minute = {}, {}, redis.call('HGETALL', metrics), math.floor(now / 60000)
for i = 1, #flat, 2 do
    local field, count = flat[i], flat[i + 1]
    local what, at = string.match(field, '^(s:%d+:[%l_]+%d*):.'), tonumber(string.match(field, '^m:(%d+):'))
    if what then
        counts[what] = (counts[what] or 0) + (tonumber(count) or 0)
    elseif TOTALS[field] or at and at > minute - 60 and at <= minute then
        found[#found + 1], found[#found + 2] = field, count
    end
end
for what, count in pairs(counts) do found[#found + 1], found[#found + 2] = what, format('%.0f', count) end
local due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
return {
    now,
    redis.call('ZCARD', waiting), redis.call('ZCARD', delayed), redis.call('ZCARD', active),
    redis.call('ZCARD', completed), redis.call('ZCARD', failed), redis.call('ZCARD', blocked),
    redis.call('ZCARD', held),
    redis.call('HGET', meta, 'paused'),
    redis.call('HGET', meta, 'closed'),
    redis.call('ZCOUNT', workers, now - tonumber(ARGV[2]), '+inf'),
    oldest_of(waiting),
    -- A nil in place of false would end the reply here.
    due[2] or false,
    found,
    redis.call('HGET', history, '') or '',
    oldest_of(held),
    aging,
}
