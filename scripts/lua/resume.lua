#!lua flags=allow-oom
-- resume: claims go on, and one worker is told.
-- KEYS meta wake
-- ARGV now
-- RETURNS 1 when the queue was paused, 0 when it was running
local meta, wake = unpack(KEYS)
redis.call('ZADD', wake, 0, 't')
return redis.call('HDEL', meta, 'paused')
