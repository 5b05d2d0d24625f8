#!lua flags=allow-oom
-- recount: compares what is counted under limit keys with the jobs themselves, and mends differences, one page per call.
-- KEYS admitted unspent held held_by openings reopens waiting active limits rules metrics wake
-- ARGV page (largest number of members per call), cursor ('' in the first call, then the last reply's)
-- RETURNS the cursor of the next call ('' when all was compared), and the number of differences that were mended
-- No script makes such differences. They can come from a damaged or edited database, and a limit would then stay too low for ever.
local admitted, unspent, held, held_by, openings, reopens, waiting, active, limits, rules, metrics, wake = unpack(KEYS)
local page, cursor = tonumber(ARGV[1]), ARGV[2]
local match, gmatch, mended, after = string.match, string.gmatch, 0, ''

-- shared: add
-- A damaged count starts again. Otherwise it would refuse the outcomes of all jobs.
local function add(field, n)
    if type(redis.pcall('HINCRBY', metrics, field, n)) == 'table' then redis.call('HSET', metrics, field, n) end
end
-- end

-- Members behind the cursor. The cursor is the letter of a set, followed by the last member that was compared.
local function members(set, letter)
    local start = string.sub(cursor, 1, 1) == letter and '(' .. string.sub(cursor, 2) or '-'
    local found = redis.call('ZRANGE', set, start, '+', 'BYLEX', 'LIMIT', 0, page)
    if #found == page then after = letter .. found[page] end
    return found
end

local function lost(set, member, key)
    redis.call('ZREM', set, member)
    redis.call('ZADD', openings, '-inf', key)
    mended = mended + 1
end

if cursor == '' or string.sub(cursor, 1, 1) == 'a' then
    -- A place belongs to a waiting or active job, a token to a waiting one.
    for _, member in ipairs(members(admitted, 'a')) do
        local key, id = match(member, '^([^%z]*)%z(.*)$')
        local waits = key and redis.call('ZSCORE', waiting, id)
        if not waits then
            if not (key and redis.call('ZSCORE', active, id)) then lost(admitted, member, key or '') end
            redis.call('ZREM', unspent, member)
        end
    end
    if after == '' then after = 'h' end
elseif string.sub(cursor, 1, 1) == 'h' then
    -- A held job stands under one of its keys.
    for _, member in ipairs(members(held_by, 'h')) do
        local key, place, id = match(member, '^([^%z]*)%z(%d+)%z(.*)$')
        local score = key and redis.call('ZSCORE', held, id)
        if not score or string.format('%016.0f', tonumber(score) + 4503599627370496) ~= place then
            lost(held_by, member, key or '')
        elseif not redis.call('ZSCORE', openings, key) and not redis.call('ZSCORE', reopens, key) then
            -- The end of an admitted job opens this key. If there is none, nothing would.
            if redis.call('ZLEXCOUNT', admitted, '[' .. key .. '\0', '(' .. key .. '\1') == 0 then
                local row = redis.call('HGET', rules, match(key, '^[^:]*')) or ''
                local set, declared = match(row, '^([^\n]*)\n?(.*)$')
                if match(set ~= '' and set or declared, '^%d+') ~= '0' then
                    redis.call('ZADD', openings, '-inf', key)
                    mended = mended + 1
                end
            end
        end
    end
    if after == '' then after = 'i' end
else
    local start = string.sub(cursor, 2)
    local rank = start ~= '' and redis.call('ZRANK', held, start) or nil
    -- If the job of the cursor has left, end here. The next walk starts at the beginning.
    if start ~= '' and not rank then return { '', 0 } end
    local found = redis.call('ZRANGE', held, rank and rank + 1 or 0, (rank or -1) + page, 'WITHSCORES')
    for i = 1, #found, 2 do
        local id, place = found[i], string.format('%016.0f', tonumber(found[i + 1]) + 4503599627370496)
        local first, stands = nil, false
        for key in gmatch(redis.call('HGET', limits, id) or '', '[^\n]+') do
            first = first or key
            stands = stands or redis.call('ZSCORE', held_by, key .. '\0' .. place .. '\0' .. id)
        end
        if not stands then
            redis.call('ZADD', held_by, 0, (first or '') .. '\0' .. place .. '\0' .. id)
            redis.call('ZADD', openings, '-inf', first or '')
            mended = mended + 1
        end
    end
    if #found == 2 * page then after = 'i' .. found[#found - 1] end
end
if mended > 0 then
    add('limits_mended', mended)
    redis.call('ZADD', wake, 0, 't')
end
return { after, mended }
