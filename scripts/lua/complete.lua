#!lua flags=allow-oom
-- complete: moves leased jobs from active to completed, with their results.
-- KEYS active leases completed results expires events metrics; limits weights admitted openings breakers closed blocked keys unique delayed wake
--   Leave out the keys after the semicolon when the jobs were claimed before the queue had limits.
-- ARGV now, m, then m pairs (what is counted for a type, count); then groups of jobs that share a token:
--   token, retention ms ('': the queue's), n, then n pairs (id, result)
-- RETURNS the size of completed; then the ids whose token was not the lease's (nothing changed for them), and
--   "!type ms" for each circuit breaker that opened for so many ms, or closed (0)
local active, leases, completed, results, expires, events, metrics, limits, weights, admitted, openings, breakers, closed, blocked, keys, unique, delayed, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: add
-- A damaged count starts again. Otherwise it would refuse the outcomes of all jobs.
local function add(field, n)
    if type(redis.pcall('HINCRBY', metrics, field, n)) == 'table' then redis.call('HSET', metrics, field, n) end
end
-- end

-- shared: count
local function count(what, n)
    add(what, n)
    add('m:' .. string.format('%.0f', math.floor(now / 60000)) .. ':' .. what, n)
end
-- end

local first = 3 + 2 * tonumber(ARGV[2])
local asked = {}
local at = first
while ARGV[at] do
    local last = at + 2 + 2 * tonumber(ARGV[at + 2])
    for i = at + 3, last, 2 do asked[#asked + 1] = ARGV[i] end
    at = last + 1
end
local held = redis.call('HMGET', leases, unpack(asked))
local ids, finished, rows, lost = {}, {}, {}, { 0 }
-- Convert the number to text once here. Otherwise ZADD converts it for every job.
local finish = string.format('%.0f', now)
local n, k = 0, 0
at = first
while ARGV[at] do
    local token, retention, last = ARGV[at], ARGV[at + 1], at + 2 + 2 * tonumber(ARGV[at + 2])
    for i = at + 3, last, 2 do
        k = k + 1
        local id = asked[k]
        if held[k] == token then
            n = n + 1
            ids[n] = id
            finished[2 * n - 1], finished[2 * n] = finish, id
            rows[2 * n - 1], rows[2 * n] = id, ARGV[i + 1]
            if retention ~= '' then redis.call('ZADD', expires, now + tonumber(retention), id) end
        else
            lost[#lost + 1] = id
        end
    end
    at = last + 1
end
if n > 0 then
    redis.call('ZREM', active, unpack(ids))
    redis.call('HDEL', leases, unpack(ids))
    -- What follows is only defined in a queue with limits or keep_last, because each function costs as much as a call. It is not
    -- indented, because shared pieces are the same in each script.
    if limits then
-- shared: slots
-- A job with several slots has as many places under each key, and while it is active under the key `queue`. The first place of a
-- key is "key NUL id", the others follow it.
local function free_slots(id, weight, names)
    if tonumber(string.match(weight, '^%d+') or 1) == 1 then return end
    for key in string.gmatch((names or '') .. '\nqueue', '[^\n]+') do
        redis.call('ZREMRANGEBYLEX', admitted, '[' .. key .. '\0' .. id .. '\0', '(' .. key .. '\0' .. id .. '\1')
    end
end
-- end

-- shared: free
-- Jobs that leave waiting or active give back their places under their limit keys. admit looks at these keys first. Returns how
-- many of them have each breaker.
local function free(list)
    local places, opened, seen, ended = {}, {}, {}, {}
    if #list == 0 or redis.call('EXISTS', limits, weights) == 0 then return ended end
    local rows = redis.call('HMGET', weights, unpack(list))
    for i, names in ipairs(redis.call('HMGET', limits, unpack(list))) do
        if rows[i] then free_slots(list[i], rows[i], names) end
        for key in string.gmatch(names or '', '[^\n]+') do
            places[#places + 1] = key .. '\0' .. list[i]
            -- The key of a breaker counts the outcomes of its type.
            if string.byte(key) == 33 then ended[key] = (ended[key] or 0) + 1 end
            -- A group counts its jobs, but has no bound that they could make room under.
            if not seen[key] and string.byte(key) ~= 64 then
                seen[key] = true
                opened[#opened + 1], opened[#opened + 2] = '-inf', key
            end
        end
    end
    if #places > 0 then redis.call('ZREM', admitted, unpack(places)) end
    if #opened > 32 then
        -- A small set is a list until a long member makes Redis convert it. See decision 20.
        local long = string.rep('x', 65)
        redis.call('ZADD', openings, '-inf', long, unpack(opened))
        redis.call('ZREM', openings, long)
    elseif #opened > 0 then
        redis.call('ZADD', openings, unpack(opened))
    end
    return ended
end
-- end

-- shared: outcomes
-- Runs of types that have a breaker ended: breaker -> number. The breaker opens when too many of the last runs failed. After its
-- time the first outcome closes it or opens it again. Runs that began before and end while it is open do not count. The reply tells
-- the worker what changed, so that it can log it.
local function note(ended, mark, reply)
    for key, n in pairs(ended) do
        local name = string.sub(key, 2)
        local row = redis.call('HGET', breakers, name) or ''
        local rate, runs, ms, till, since, last = string.match(row, '^(%S+) (%d+) (%d+) (%d+) (%d+) ([01-]+)$')
        -- A damaged row opens nothing: it could hold its jobs for ever.
        if rate and tonumber(rate) and tonumber(runs) <= 1000 and tonumber(ms) < 1e12 and tonumber(till) <= now then
            local probed, opens = tonumber(till) > 0, false
            if probed then
                opens, last = mark == '1', '-'
            else
                last = string.sub((last == '-' and '' or last) .. string.rep(mark, n), -tonumber(runs))
                local _, failures = string.gsub(last, '1', '1')
                opens = #last >= tonumber(runs) and failures >= tonumber(rate) * #last
            end
            if opens then
                till, since, last = string.format('%.0f', now + tonumber(ms)), string.format('%.0f', now), '-'
                redis.call('ZADD', closed, till, key)
                reply[#reply + 1] = key .. ' ' .. ms
            elseif probed then
                till, since = '0', string.format('%.0f', now)
                redis.call('ZREM', closed, key)
                reply[#reply + 1] = key .. ' 0'
            end
            redis.call('HSET', breakers, name, table.concat({ rate, runs, ms, till, since, last }, ' '))
        end
    end
end
-- end

-- shared: follow
-- A job that waits in `blocked` for the end of another one with its key (keep_last) is due when that one has ended. forward then
-- gives it its place. The row of the key names both jobs.
local function follow(list)
    if #list == 0 or redis.call('EXISTS', blocked) == 0 then return end
    for i, names in ipairs(redis.call('HMGET', keys, unpack(list))) do
        for key in string.gmatch(names and names .. '\n' or '', '([^\t\n]+)\n') do
            local id, other = string.match(redis.call('HGET', unique, key) or '', '^(%S+) %S+ %S+ (%S+)$')
            local due = other == list[i] and redis.call('ZSCORE', blocked, id)
            if due then
                redis.call('ZREM', blocked, id)
                redis.call('ZADD', delayed, math.max(now, tonumber(due)), id)
                redis.call('ZADD', wake, 0, 't')
            end
        end
    end
end
-- end
    note(free(ids), '0', lost)
    follow(ids)
    end
    redis.call('ZADD', completed, unpack(finished))
    redis.call('HSET', results, unpack(rows))
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'completed', table.concat(ids, ' '))
    count('completed', n)
    -- Each five minutes are counted alone. So windows decay: fold adds them to the history when they are over.
    local window = 's:' .. string.format('%.0f', math.floor(now / 300000)) .. ':'
    for i = 3, first - 1, 2 do add(window .. ARGV[i], ARGV[i + 1]) end
end
lost[1] = redis.call('ZCARD', completed)
return lost
