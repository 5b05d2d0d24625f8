#!lua flags=allow-oom
-- open: the queue's layout, before anything else touches it.
-- KEYS meta
-- ARGV the caller's layout version
-- RETURNS the layout that stands in Redis (written by the first caller)
local meta = unpack(KEYS)
redis.call('HSETNX', meta, 'layout', ARGV[1])
return redis.call('HGET', meta, 'layout')
