#!lua flags=allow-oom
-- open: the queue's layout, before anything else touches it.
-- KEYS meta
-- ARGV the caller's layout version, the version that the caller has migrated from ('': it has migrated nothing)
-- RETURNS the layout that stands in Redis: written by the first caller, or by the first one that has finished a migration
local meta = unpack(KEYS)
redis.call('HSETNX', meta, 'layout', ARGV[1])
local layout = redis.call('HGET', meta, 'layout')
if layout ~= ARGV[2] then return layout end
redis.call('HSET', meta, 'layout', ARGV[1])
return ARGV[1]
