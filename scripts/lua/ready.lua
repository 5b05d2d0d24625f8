#!lua flags=no-writes
-- ready: shows that scripts run on the queue's keys. It costs as little as a PING.
-- KEYS meta
-- ARGV (none)
-- RETURNS the version of the queue's layout, or nil if the queue was never opened
local meta = unpack(KEYS)
return redis.call('HGET', meta, 'layout')
