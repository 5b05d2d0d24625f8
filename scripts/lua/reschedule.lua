#!lua flags=allow-oom
-- reschedule: moves leased jobs from active to delayed after a failed attempt. The attempt is charged.
-- KEYS active leases delayed attempts errors metrics wake limits weights admitted openings breakers closed events
-- ARGV now, m, then m pairs (what is counted for a type, count); then per job: id, token, attempt (number charged so far, with this one), delay ms, error record (one line of JSON)
-- RETURNS the ids whose token was not the lease's (nothing changed for them), and
--   "!type ms" for each circuit breaker that opened for so many ms, or closed (0)
local active, leases, delayed, attempts, errors, metrics, wake, limits, weights, admitted, openings, breakers, closed, events = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end

-- shared: end of a lease
-- Only the holder of the token can end the lease. A worker whose job was given to another one changes nothing.
local function end_lease(id, token)
    if redis.call('HGET', leases, id) ~= token then return false end
    redis.call('ZREM', active, id)
    redis.call('HDEL', leases, id)
    return true
end
-- end

-- shared: error column
local function add_error(id, record)
    local text, from = redis.call('HGET', errors, id), 1
    text = text and text .. '\n' .. record or record
    -- The column is bounded. Drop the oldest attempts first.
    while #text - from >= 65536 do
        local line = string.find(text, '\n', from, true)
        if not line then break end
        from = line + 1
    end
    redis.call('HSET', errors, id, string.sub(text, from))
end
-- end

-- shared: add
-- A damaged count starts again. Otherwise it would refuse the outcomes of all jobs.
local function add(field, n)
    if type(redis.pcall('HINCRBY', metrics, field, n)) == 'table' then redis.call('HSET', metrics, field, n) end
end
-- end

-- shared: attempts
-- A row has up to four numbers: the runs that were charged; the time from which the job can run, if it was put back since its
-- enqueue; how often it was snoozed, and how often it was rate limited, if it was. The last two are passed on as one text.
local function read_attempts(id)
    local runs, since, snoozes = string.match(redis.call('HGET', attempts, id) or '', '^(%d+) ?(%d*) ?(%d* ?%d*)')
    return tonumber(runs) or 0, tonumber(since), snoozes or ''
end

local function write_attempts(id, runs, since, snoozes)
    local row = string.format('%.0f', runs)
    if since then row = row .. string.format(' %.0f', since) end
    if since and snoozes ~= '' then row = row .. ' ' .. snoozes end
    redis.call('HSET', attempts, id, row)
end
-- end

-- shared: count
local function count(what, n)
    add(what, n)
    add('m:' .. string.format('%.0f', math.floor(now / 60000)) .. ':' .. what, n)
end
-- end

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

local first = 3 + 2 * tonumber(ARGV[2])
local retried, lost = {}, {}
for i = first, #ARGV, 5 do
    local id, attempt, due = ARGV[i], tonumber(ARGV[i + 2]), now + tonumber(ARGV[i + 3])
    if end_lease(id, ARGV[i + 1]) then
        local _, _, snoozes = read_attempts(id)
        write_attempts(id, attempt, due, snoozes)
        add_error(id, ARGV[i + 4])
        redis.call('ZADD', delayed, due, id)
        retried[#retried + 1] = id
    else
        lost[#lost + 1] = id
    end
end
note(free(retried), '1', lost)
if #retried > 0 then
    -- Wake a worker, so that one waits for the new due time. The worker that sent this call may have no free slot.
    redis.call('ZADD', wake, 0, 't')
    redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'retried', table.concat(retried, ' '))
    count('retried', #retried)
    local window = 's:' .. string.format('%.0f', math.floor(now / 300000)) .. ':'
    for i = 3, first - 1, 2 do add(window .. ARGV[i], ARGV[i + 1]) end
end
return lost
