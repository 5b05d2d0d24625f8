#!lua flags=allow-oom
-- open: the queue's layout, before anything else touches it. A queue without one is new, and is left without a trace.
-- KEYS meta
-- ARGV the caller's layout version, the version that the caller has migrated from ('': it has migrated nothing)
-- RETURNS the layout that stands in Redis, or the caller's where none stands; after a migration the caller's is written
local meta = unpack(KEYS)
local layout = redis.call('HGET', meta, 'layout') or ARGV[1]
if layout ~= ARGV[2] then return layout end
redis.call('HSET', meta, 'layout', ARGV[1])
return ARGV[1]
