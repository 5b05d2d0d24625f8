#!lua flags=allow-oom
-- open: reads the version of the queue's layout, before any other script runs. It writes nothing for a new queue.
-- KEYS meta
-- ARGV the caller's layout version, the version that the caller has migrated from ('': it has migrated nothing)
-- RETURNS the version in Redis, or the caller's version for a new queue. After a migration it writes the caller's version.
local meta = unpack(KEYS)
local layout = redis.call('HGET', meta, 'layout') or ARGV[1]
if layout ~= ARGV[2] then return layout end
redis.call('HSET', meta, 'layout', ARGV[1])
return ARGV[1]
