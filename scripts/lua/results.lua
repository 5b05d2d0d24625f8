#!lua flags=no-writes
-- results: reads how jobs ended, for the callers that wait for them.
-- KEYS completed failed jobs results errors
-- ARGV ids
-- RETURNS pairs for the first ids, until 1 MB was read: state, row.
--   "completed" and the result; "failed" and the error records; "pending" or "gone" and ''
local completed, failed, jobs, results, errors = unpack(KEYS)
local rows, bytes = {}, 0
for i, id in ipairs(ARGV) do
    local state, row = 'gone', ''
    if redis.call('ZSCORE', completed, id) then
        state, row = 'completed', redis.call('HGET', results, id) or ''
    elseif redis.call('ZSCORE', failed, id) then
        state, row = 'failed', redis.call('HGET', errors, id) or ''
    elseif redis.call('HEXISTS', jobs, id) == 1 then
        state = 'pending'
    end
    rows[2 * i - 1], rows[2 * i] = state, row
    bytes = bytes + #row
    if bytes > 1000000 then break end
end
return rows
