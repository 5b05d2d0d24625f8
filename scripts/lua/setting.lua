#!lua flags=allow-oom
-- setting: sets a setting of the queue that is one word in meta, or removes it.
-- KEYS meta
-- ARGV field ('': only count a change), value ('': remove it)
-- RETURNS OK
local meta = unpack(KEYS)
local field, value = ARGV[1], ARGV[2]

-- shared: counted
-- What operators set was changed in this partition. See settings.lua. A damaged count starts again.
local function counted()
    if type(redis.pcall('HINCRBY', meta, 'changes', 1)) == 'table' then redis.call('HSET', meta, 'changes', 1) end
end
-- end

counted()
if field ~= '' then
    if value == '' then redis.call('HDEL', meta, field) else redis.call('HSET', meta, field, value) end
end
return redis.status_reply('OK')
