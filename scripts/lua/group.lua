#!lua flags=allow-oom
-- group: writes or removes the settings of a group, and lets admit look at it. If the group is paused now, jobs of it that were
--   admitted and have not started go back to held, one page per call.
-- KEYS groups limits weights waiting held held_by admitted unspent openings arrivals meta wake
-- ARGV group, its row ("weight paused most", with "=" for what stays as it is; '': remove it), largest number of rows, cursor ('' in the first call, then the last
--   reply), page (largest number of jobs per call)
-- RETURNS the cursor of the next call, or '' when all was looked at; 'full' when there are too many rows (nothing changed)
local groups, limits, weights, waiting, held, held_by, admitted, unspent, openings, arrivals, meta, wake = unpack(KEYS)
local name, row, most, cursor, page = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local key = '@' .. name

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

-- shared: counted
-- What operators set was changed in this partition. See settings.lua. A damaged count starts again.
local function counted()
    if type(redis.pcall('HINCRBY', meta, 'changes', 1)) == 'table' then redis.call('HSET', meta, 'changes', 1) end
end
-- end

if cursor == '' then
    if row ~= '' and redis.call('HEXISTS', groups, name) == 0 and redis.call('HLEN', groups) >= most then return 'full' end
    if string.find(row, '=', 1, true) then
        local words = {}
        for word in string.gmatch(redis.call('HGET', groups, name) or '', '%S+') do words[#words + 1] = word end
        if #words ~= 3 then words = { '1', '0', '-' } end
        local at = 0
        row = string.gsub(row, '%S+', function(word)
            at = at + 1
            return word == '=' and words[at] or word
        end)
    end
    if row == '' then redis.call('HDEL', groups, name) else redis.call('HSET', groups, name, row) end
    counted()
    redis.call('HSET', meta, 'limited', 1)
    redis.call('ZADD', openings, '-inf', key)
    redis.call('ZADD', wake, 0, 't')
    if not string.match(row, '^%S+ 1') then return '' end
end

local start = cursor == '' and '[' .. key .. '\0' or '(' .. cursor
local found = redis.call('ZRANGE', admitted, start, '(' .. key .. '\1', 'BYLEX', 'LIMIT', 0, page)
for _, member in ipairs(found) do
    local id = string.match(member, '^[^%z]*', #key + 2)
    local score = redis.call('ZSCORE', waiting, id)
    if score then
        local line = redis.call('HGET', limits, id) or key
        free_slots(id, redis.call('HGET', weights, id) or '', line)
        for other in string.gmatch(line, '[^\n]+') do
            redis.call('ZREM', admitted, other .. '\0' .. id)
            redis.call('ZREM', unspent, other .. '\0' .. id)
            redis.call('ZADD', openings, '-inf', other)
        end
        redis.call('ZREM', waiting, id)
        redis.call('ZADD', held, score, id)
        redis.call('ZADD', held_by, 0, line .. '\0' .. string.format('%016.0f', tonumber(score) + 4503599627370496) .. '\0' .. id)
        redis.call('ZADD', arrivals, 'LT', score, line)
    end
end
return #found == page and found[page] or ''
