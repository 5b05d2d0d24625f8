#!lua flags=allow-oom
-- recount: compares what is counted under limit keys with the jobs themselves, and mends differences, one page per call.
-- KEYS admitted unspent held held_by openings reopens waiting active limits weights rules metrics wake meta arrivals lines open_lines full_lines turns finish groups closed undecided seats
-- ARGV now, page (largest number of members per call), cursor ('' in the first call, then the last reply's)
-- RETURNS the cursor of the next call ('' when all was compared), and the number of differences that were mended
-- No script makes such differences. They can come from a damaged or edited database, and a limit would then stay too low for ever.
local admitted, unspent, held, held_by, openings, reopens, waiting, active, limits, weights, rules, metrics, wake, meta, arrivals, lines, open_lines, full_lines, turns, finish, groups, closed, undecided, seats = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local page, cursor = tonumber(ARGV[2]), ARGV[3]
local match, sub, mended, after = string.match, string.sub, 0, ''

-- shared: add
-- A damaged count starts again. Otherwise it would refuse the outcomes of all jobs.
local function add(field, n)
    if type(redis.pcall('HINCRBY', metrics, field, n)) == 'table' then redis.call('HSET', metrics, field, n) end
end
-- end

-- Members behind the cursor. The cursor is the letter of a set, followed by the last member that was compared.
local function members(set, letter)
    local start = sub(cursor, 1, 1) == letter and '(' .. sub(cursor, 2) or '-'
    local found = redis.call('ZRANGE', set, start, '+', 'BYLEX', 'LIMIT', 0, page)
    if #found == page then after = letter .. found[page] end
    return found
end

-- Let admit look at a line again.
local function arrive(line)
    redis.call('ZADD', arrivals, '-inf', line)
    mended = mended + 1
end

-- Whether an open line lists a key. It leaves the key's room to the lines that wait for it, once it is served. If there are more open
-- lines than a page, some of them are served soon, and a later walk looks again.
local open_keys
local function is_of_an_open_line(key)
    if not open_keys then
        open_keys = {}
        local found = redis.call('ZRANGE', open_lines, '-', '+', 'BYLEX', 'LIMIT', 0, page)
        for _, member in ipairs(found) do
            for one in string.gmatch(match(member, '^[^%z]*%z%d+%z(.*)$') or '', '[^\n]+') do open_keys[one] = true end
        end
        if #found == page then open_keys = setmetatable({}, { __index = function() return true end }) end
    end
    return open_keys[key]
end

if cursor == '' or sub(cursor, 1, 1) == 'a' then
    -- A place belongs to a waiting or active job, a token to a waiting one.
    for _, member in ipairs(members(admitted, 'a')) do
        local key, id, slot = match(member, '^([^%z]*)%z([^%z]*)%z?(%d*)$')
        local waits = key and redis.call('ZSCORE', waiting, id)
        -- Only active jobs have places under the key `queue`, and only jobs with several slots have more than one under a key.
        local stands = key and (key ~= 'queue' and waits or redis.call('ZSCORE', active, id))
        if stands and slot ~= '' and tonumber(slot) > (tonumber(match(redis.call('HGET', weights, id) or '', '^%d+')) or 1) then stands = nil end
        if not stands then
            redis.call('ZREM', admitted, member)
            redis.call('ZADD', openings, '-inf', key or '')
            mended = mended + 1
        end
        if not waits then redis.call('ZREM', unspent, member) end
    end
    if after == '' then after = 'h' end
elseif sub(cursor, 1, 1) == 'h' then
    -- A member belongs to a held job. Its line has arrived, or is open, or waits for one of its keys.
    local seen = {}
    for _, member in ipairs(members(held_by, 'h')) do
        local line, place, id = match(member, '^([^%z]*)%z(%d+)%z(.*)$')
        local score = line and redis.call('ZSCORE', held, id)
        if not score or string.format('%016.0f', tonumber(score) + 4503599627370496) ~= place then
            redis.call('ZREM', held_by, member)
            arrive(line or '')
        elseif not seen[line] then
            seen[line] = true
            local spot = redis.call('HGET', lines, '=' .. line) or ''
            local set = sub(spot, 1, 1) == 'o' and open_lines or full_lines
            if not redis.call('ZSCORE', set, sub(spot, 2)) then
                redis.call('HDEL', lines, '=' .. line)
                if not redis.call('ZSCORE', arrivals, line) then arrive(line) end
            end
        end
    end
    if after == '' then after = 'o' end
elseif sub(cursor, 1, 1) == 'o' then
    -- The group of an open line has a turn.
    for _, member in ipairs(members(open_lines, 'o')) do
        local group, line = match(member, '^([^%z]*)%z%d+%z(.*)$')
        if not line or redis.call('HGET', lines, '=' .. line) ~= 'o' .. member then
            redis.call('ZREM', open_lines, member)
            arrive(line or '')
        elseif not redis.call('ZSCORE', turns, redis.call('HGET', lines, '@' .. group) or '') then
            redis.call('HDEL', lines, '@' .. group, '=' .. line)
            arrive(line)
        end
    end
    if after == '' then after = 'f' end
elseif sub(cursor, 1, 1) == 'f' then
    for _, member in ipairs(members(full_lines, 'f')) do
        local key, line = match(member, '^([^%z]*)%z[^%z]*%z%d+%z(.*)$')
        if not line or redis.call('HGET', lines, '=' .. line) ~= 'f' .. member then
            redis.call('ZREM', full_lines, member)
            arrive(line or '')
        elseif #redis.call('ZRANGE', held_by, '[' .. line .. '\0', '(' .. line .. '\1', 'BYLEX', 'LIMIT', 0, 1) == 0 then
            -- All of its jobs were killed or removed.
            redis.call('ZREM', full_lines, member)
            redis.call('HDEL', lines, '=' .. line)
        elseif not redis.call('ZSCORE', openings, key) and not redis.call('ZSCORE', reopens, key) then
            -- The end of an admitted job opens this key. If there is none, nothing would.
            if sub(key, 1, 1) == '@' or redis.call('ZLEXCOUNT', admitted, '[' .. key .. '\0', '(' .. key .. '\1') == 0 then
                local shut
                if sub(key, 1, 1) == '@' then
                    shut = match(redis.call('HGET', groups, sub(key, 2)) or '', '^%S+ 1')
                else
                    local row = redis.call('HGET', rules, match(key, '^[^:]*')) or ''
                    local set, declared = match(row, '^([^\n]*)\n?(.*)$')
                    shut = match(set ~= '' and set or declared, '^%d+') == '0'
                end
                if not shut and not is_of_an_open_line(key) then
                    redis.call('ZADD', openings, '-inf', key)
                    mended = mended + 1
                end
            end
        end
    end
    if after == '' then after = 's' end
elseif sub(cursor, 1, 1) == 's' then
    -- A job that was killed or removed while it was held leaves its seats behind. They count as free, and are removed here.
    for _, member in ipairs(members(seats, 's')) do
        if not redis.call('ZSCORE', held, match(member, '^[^%z]*%z([^%z]*)') or '') then redis.call('ZREM', seats, member) end
    end
    for _, id in ipairs(redis.call('ZRANGE', undecided, 0, page - 1)) do
        if not redis.call('ZSCORE', held, id) then redis.call('ZREM', undecided, id) end
    end
    if after == '' then after = 'i' end
else
    local start = sub(cursor, 2)
    local rank = start ~= '' and redis.call('ZRANK', held, start) or nil
    -- If the job of the cursor has left, end here. The next walk starts at the beginning.
    if start ~= '' and not rank then return { '', 0 } end
    local found = redis.call('ZRANGE', held, rank and rank + 1 or 0, (rank or -1) + page, 'WITHSCORES')
    for i = 1, #found, 2 do
        local id, place = found[i], string.format('%016.0f', tonumber(found[i + 1]) + 4503599627370496)
        local line = redis.call('HGET', limits, id) or ''
        local member = line .. '\0' .. place .. '\0' .. id
        if not redis.call('ZSCORE', held_by, member) then
            redis.call('ZADD', held_by, 0, member)
            arrive(line)
        end
    end
    if #found == 2 * page then after = 'i' .. found[#found - 1] end
end
if cursor == '' then
    -- If the server's clock was set back, the times of closed keys are too late by the difference. Those of tokens are found anew.
    local clock = redis.call('HMGET', meta, 'clock', 'closed')
    local back = (tonumber(clock[1]) or 0) - now
    if clock[2] or redis.call('EXISTS', reopens, closed) > 0 then redis.call('HSET', meta, 'clock', string.format('%.0f', now)) end
    if back > 1000 then
        for _, key in ipairs(redis.call('ZRANGE', reopens, 0, 999)) do
            redis.call('ZREM', reopens, key)
            redis.call('ZADD', openings, '-inf', key)
        end
        local times = redis.call('ZRANGE', closed, 0, 999, 'WITHSCORES')
        for i = 1, #times, 2 do
            if string.byte(times[i]) ~= 33 then redis.call('ZADD', closed, string.format('%.0f', tonumber(times[i + 1]) - back), times[i]) end
        end
        if tonumber(clock[2]) then redis.call('HSET', meta, 'closed', string.format('%.0f', tonumber(clock[2]) - back)) end
        redis.call('ZADD', wake, 0, 't')
    end
    -- A group whose tag has passed starts at the virtual time anyway.
    local idle = redis.call('ZRANGE', finish, '-inf', redis.call('HGET', meta, 'virtual') or 0, 'BYSCORE', 'LIMIT', 0, page)
    if #idle > 0 then redis.call('ZREM', finish, unpack(idle)) end
end
if mended > 0 then
    add('limits_mended', mended)
    redis.call('ZADD', wake, 0, 't')
end
return { after, mended }
