#!lua flags=allow-oom
-- charge: sets what running jobs really cost. The rates of their limit keys that count this unit move by the difference.
-- KEYS leases limits weights spent debts rules full_lines openings wake
-- ARGV now; then per job: id, token, lines "unit amount"
-- RETURNS the ids whose token was not the lease's (nothing changed for them)
-- The row of a job says what it was charged for, so a repeated call finds no difference.
local leases, limits, weights, spent, debts, rules, full_lines, openings, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local format, match, gmatch, min, max = string.format, string.match, string.gmatch, math.min, math.max

-- shared: lines of a key
-- The members "key NUL ..." of a sorted set with equal scores.
local function from(key) return '[' .. key .. '\0' end
local function to(key) return '(' .. key .. '\1' end
-- end

-- shared: rule
-- The rule of a key is named before its first colon. A row has two lines: an operator's rule, and the one that code declares.
-- A rule is "concurrency count/per/burst/unit ..." with `-` for no concurrency, and `per` in ms. A band without a unit counts jobs. The
-- operator's rule takes precedence.
local function parse(text)
    local rule = { concurrency = tonumber(match(text, '^%d+')), bands = {} }
    for count, per, burst, unit in gmatch(text, ' (%d+)/(%d+)/(%d+)/?([%w_]*)') do
        local interval = tonumber(per) / tonumber(count)
        -- Pass over a damaged band: it would hold its jobs for ever.
        if interval > 0 and interval < 1e15 and tonumber(burst) >= 1 and tonumber(burst) < 1e15 then
            rule.bands[#rule.bands + 1] = {
                interval = interval, tolerance = (tonumber(burst) - 1) * interval, burst = tonumber(burst), unit = unit ~= '' and unit or nil,
            }
        end
    end
    return rule
end

local parsed = {}
local function rule_of(key)
    local name = match(key, '^[^:]*')
    if not parsed[name] then
        local set, declared = match(redis.call('HGET', rules, name) or '', '^([^\n]*)\n?(.*)$')
        parsed[name] = parse(set ~= '' and set or declared)
    end
    return parsed[name]
end
-- end

-- shared: arrival
-- The theoretical arrival time of a band. If it is further away than a full burst, the rule was changed or the clock was set back
-- since it was stored. Then one token is free. A band with a unit may owe more than a burst, because a job may cost more than that.
-- So `debts` has when the time was stored, and the interval then: what is owed is paid back at the interval of now.
local function arrival_of(key, i, band)
    local stored = tonumber(redis.call('ZSCORE', spent, key .. '\0' .. i) or 0)
    if band.unit and stored > now then
        local at, interval = match(redis.call('HGET', debts, key .. '\0' .. i) or '', '^(%S+) (%S+)$')
        at, interval = tonumber(at), tonumber(interval)
        if at and interval and interval > 0 then
            local arrival = max(now, min(at, now) + (stored - at) / interval * band.interval)
            if at > now then
                -- The clock was set back. Count from now on.
                redis.call('ZADD', spent, string.format('%.4f', arrival), key .. '\0' .. i)
                redis.call('HSET', debts, key .. '\0' .. i, string.format('%.0f %.17g', now, band.interval))
            end
            return arrival
        end
    end
    return stored > now + band.burst * band.interval + 1 and now + band.tolerance or max(now, stored)
end
-- end

-- shared: costs
-- A row of weights has the slots of the job, then a line "unit estimate" for each cost, and behind it what the run really cost, once
-- its handler has said so. A job without a cost in a unit costs 1. Returns the estimate, and the real cost.
local function cost_of(row, unit)
    local estimate, real = match((row or '') .. '\n', '\n' .. unit .. ' (%d+) ?(%d*)\n')
    return tonumber(estimate) or 1, tonumber(real)
end
-- end

-- A cost that was too low moves the arrival time on, and one that was too high moves it back. Then lines of the key may go on earlier.
local function move(key, unit, more)
    for i, band in ipairs(rule_of(key).bands) do
        if band.unit == unit then
            local field, arrival = key .. '\0' .. i, max(now, arrival_of(key, i, band) + more * band.interval)
            redis.call('ZADD', spent, format('%.4f', arrival), field)
            redis.call('HSET', debts, field, format('%.0f %.17g', now, band.interval))
            if more < 0 and #redis.call('ZRANGE', full_lines, from(key), to(key), 'BYLEX', 'LIMIT', 0, 1) > 0 then
                redis.call('ZADD', openings, '-inf', key)
                redis.call('ZADD', wake, 0, 't')
            end
        end
    end
end

local lost = {}
for i = 2, #ARGV, 3 do
    local id = ARGV[i]
    if redis.call('HGET', leases, id) == ARGV[i + 1] then
        local names, row = redis.call('HGET', limits, id) or '', redis.call('HGET', weights, id) or '1'
        for unit, amount in gmatch(ARGV[i + 2], '([%w_]+) (%d+)') do
            local estimate, real = cost_of(row, unit)
            local more = tonumber(amount) - (real or estimate)
            if more ~= 0 then
                local rest = string.gsub(row .. '\n', '\n' .. unit .. ' [^\n]*\n', '\n', 1)
                row = rest .. format('%s %.0f %s', unit, estimate, amount)
                for key in gmatch(names, '[^\n]+') do move(key, unit, more) end
                redis.call('HSET', weights, id, row)
            end
        end
    else
        lost[#lost + 1] = id
    end
end
return lost
