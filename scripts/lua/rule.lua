#!lua flags=allow-oom
-- rule: writes or removes a rule of limits, and lets admit look at the keys whose jobs it holds, one page per call.
-- KEYS rules held_by openings reopens meta wake
-- ARGV layer ("set": an operator's rule, which takes precedence; "declared": the one that code declares), name, text ('': remove it),
--   largest number of rules, cursor ('' in the first call, then the last reply), page (largest number of keys per call)
-- RETURNS the cursor of the next call, or '' when all keys were looked at; 'full' when there are too many rules (nothing changed)
local rules, held_by, openings, reopens, meta, wake = unpack(KEYS)
local layer, name, text, most, cursor, page = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

if cursor == '' then
    local row = redis.call('HGET', rules, name)
    if not row and text ~= '' and redis.call('HLEN', rules) >= most then return 'full' end
    local set, declared = string.match(row or '', '^([^\n]*)\n?(.*)$')
    local before = set ~= '' and set or declared
    if layer == 'set' then set = text else declared = text end
    if set == '' and declared == '' then
        redis.call('HDEL', rules, name)
    else
        redis.call('HSET', rules, name, set .. '\n' .. declared)
    end
    local after = set ~= '' and set or declared
    if before == after then return '' end
    if name == 'queue' then
        -- This rule applies to every job, and no job is held for it. Claims read it with what else they read of meta.
        if after == '' then redis.call('HDEL', meta, 'rule') else redis.call('HSET', meta, 'rule', after, 'limited', 1) end
        redis.call('ZADD', wake, 0, 't')
        return ''
    end
end

-- Keys of a rule are its name, alone or followed by a colon. Jump from each key that holds jobs to the next one.
local opened, after = 0, cursor
while opened < page do
    local start = after ~= '' and '(' .. after .. '\1' or '[' .. name .. '\0'
    local member = redis.call('ZRANGE', held_by, start, '+', 'BYLEX', 'LIMIT', 0, 1)[1]
    local key = member and string.match(member, '^[^%z]+')
    if key and key ~= name and string.sub(key, 1, #name + 1) < name .. ':' then
        -- Other rules stand between the name alone and the name with a colon: "mail", "mail-fast", "mail:a".
        after = name .. ':'
        member = redis.call('ZRANGE', held_by, '[' .. after, '+', 'BYLEX', 'LIMIT', 0, 1)[1]
        key = member and string.match(member, '^[^%z]+')
    end
    if not key or key ~= name and string.sub(key, 1, #name + 1) ~= name .. ':' then
        after = ''
        break
    end
    redis.call('ZREM', reopens, key)
    redis.call('ZADD', openings, '-inf', key)
    after, opened = key, opened + 1
end
if opened > 0 then redis.call('ZADD', wake, 0, 't') end
return after
