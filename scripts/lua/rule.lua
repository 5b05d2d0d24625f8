#!lua flags=allow-oom
-- rule: writes or removes a rule of limits. Then, one page per call, jobs of the rule that were admitted and have not started go
--   back to held, and admit gets to look at all keys of the rule that lines of held jobs wait for.
-- KEYS rules limits weights waiting held held_by admitted unspent openings arrivals full_lines reopens meta wake
-- ARGV layer ("set": an operator's rule, which takes precedence; "declared": the one that code declares), name, text ('': remove it),
--   largest number of rules, cursor ('' in the first call, then the last reply), page (largest number of jobs or keys per call),
--   1 in a partition other than the first one: of the rule `queue` it has the share that it is given
-- RETURNS the cursor of the next call, or '' when all was looked at; 'full' when there are too many rules (nothing changed)
local rules, limits, weights, waiting, held, held_by, admitted, unspent, openings, arrivals, full_lines, reopens, meta, wake = unpack(KEYS)
local layer, name, text, most, cursor, page = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

-- shared: counted
-- What operators set was changed in this partition. See settings.lua. A damaged count starts again.
local function counted()
    if type(redis.pcall('HINCRBY', meta, 'changes', 1)) == 'table' then redis.call('HSET', meta, 'changes', 1) end
end
-- end

if cursor == '' then
    local row = redis.call('HGET', rules, name)
    if not row and text ~= '' and redis.call('HLEN', rules) >= most then return 'full' end
    local set, declared = string.match(row or '', '^([^\n]*)\n?(.*)$')
    local before = set ~= '' and set or declared
    if layer == 'set' or text ~= (declared or '') then counted() end
    if layer == 'set' then set = text else declared = text end
    if set == '' and declared == '' then
        redis.call('HDEL', rules, name)
    else
        redis.call('HSET', rules, name, set .. '\n' .. declared)
    end
    local after = set ~= '' and set or declared
    -- meta names the rules with an action for jobs over their limit, so that an enqueue need not read rules.
    local acting = redis.call('HGET', meta, 'over') or '\n'
    local at, acts = string.find(acting, '\n' .. name .. '\n', 1, true), string.find(after, ' %l[%l_]*$')
    if acts and not at then
        redis.call('HSET', meta, 'over', acting .. name .. '\n')
    elseif at and not acts then
        acting = string.sub(acting, 1, at) .. string.sub(acting, at + #name + 2)
        if acting == '\n' then redis.call('HDEL', meta, 'over') else redis.call('HSET', meta, 'over', acting) end
    end
    -- A rule that an operator sets again may not have reached all keys: the reply to the first call was lost, or its caller died.
    if before == after and layer ~= 'set' then return '' end
    if name == 'queue' then
        -- This rule applies to every job, and no job is held for it. Claims read it with what else they read of meta. A partition
        -- whose share of it is balanced starts nothing until it has one.
        if ARGV[7] == '1' then redis.call('HSETNX', meta, 'balanced', 0) end
        local shares = redis.call('HEXISTS', meta, 'balanced') == 1
        if after == '' then redis.call('HDEL', meta, 'rule', 'whole')
        elseif shares then
            redis.call('HSETNX', meta, 'rule', '0')
            redis.call('HSET', meta, 'limited', 1)
        else redis.call('HSET', meta, 'rule', after, 'limited', 1) end
        redis.call('ZADD', wake, 0, 't')
        return ''
    end
end

-- The next member of a rule's keys, which are its name, alone or followed by a colon: "mail NUL ...", "mail:a NUL ...". Members of
-- other rules, such as "mail-fast", may stand between these two.
local function next_member(set, start)
    local member = redis.call('ZRANGE', set, start, '(' .. name .. '\1', 'BYLEX', 'LIMIT', 0, 1)[1]
    if member then return member end
    local colon = '[' .. name .. ':'
    if string.sub(start, 2) > name .. ':' then colon = start end
    return redis.call('ZRANGE', set, colon, '(' .. name .. ';', 'BYLEX', 'LIMIT', 0, 1)[1]
end

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

local function take_back(key, id, score)
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

local looked = 0
if string.sub(cursor, 1, 1) ~= 'k' then
    local start = cursor == '' and '[' .. name .. '\0' or '(' .. string.sub(cursor, 2)
    while looked < page do
        local member = next_member(admitted, start)
        if not member then
            cursor = 'k'
            break
        end
        local key, id = string.match(member, '^([^%z]*)%z([^%z]*)')
        local score = redis.call('ZSCORE', waiting, id)
        if score then take_back(key, id, score) end
        start, looked = '(' .. member, looked + 1
        cursor = 'a' .. member
    end
    if cursor ~= 'k' then return cursor end
end

local start = cursor == 'k' and '[' .. name .. '\0' or '[' .. string.sub(cursor, 2) .. '\1'
while looked < page do
    local member = next_member(full_lines, start)
    if not member then
        redis.call('ZADD', wake, 0, 't')
        return ''
    end
    local key = string.match(member, '^[^%z]*')
    redis.call('ZREM', reopens, key)
    redis.call('ZADD', openings, '-inf', key)
    -- Jump over the other lines of this key.
    start, looked = '[' .. key .. '\1', looked + 1
    cursor = 'k' .. key
end
return cursor
