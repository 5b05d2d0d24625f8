#!lua flags=no-writes
-- ready: whether a script runs on the queue's keys, at the cost of a PING.
-- KEYS meta
-- ARGV (none)
-- RETURNS the queue's layout, or nil where nobody has opened it
local meta = unpack(KEYS)
return redis.call('HGET', meta, 'layout')
