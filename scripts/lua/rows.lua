#!lua flags=no-writes
-- rows: all there is to know of some jobs.
-- KEYS waiting delayed active completed failed blocked leases jobs priorities attempts errors results progress unserved keys
-- ARGV ids
-- RETURNS for each of the first ids, until they come to 1 MB: nil (unknown), or state, score, lease token, spec, priority,
--   attempts, errors, result, progress, unserved, keys
local rows, bytes = {}, 0
local states = { 'waiting', 'delayed', 'active', 'completed', 'failed', 'blocked' }
for i, id in ipairs(ARGV) do
    rows[i] = false
    for s = 1, 6 do
        local score = redis.call('ZSCORE', KEYS[s], id)
        if score then
            local row = { states[s], score }
            for column = 7, #KEYS do
                local value = redis.call('HGET', KEYS[column], id)
                row[column - 4] = value
                bytes = bytes + #(value or '')
            end
            rows[i] = row
            break
        end
    end
    if bytes > 1000000 then break end
end
return rows
