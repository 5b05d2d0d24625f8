#!lua flags=no-writes
-- rows: all there is to know of some jobs.
-- KEYS waiting delayed active completed failed blocked leases jobs priorities attempts errors results progress unserved keys
-- ARGV ids
-- RETURNS per id: nil (unknown), or state, score, lease token, spec, priority, attempts, errors, result, progress, unserved, keys
local rows = {}
local states = { 'waiting', 'delayed', 'active', 'completed', 'failed', 'blocked' }
for i, id in ipairs(ARGV) do
    rows[i] = false
    for s = 1, 6 do
        local score = redis.call('ZSCORE', KEYS[s], id)
        if score then
            local row = { states[s], score }
            for column = 7, #KEYS do row[column - 4] = redis.call('HGET', KEYS[column], id) end
            rows[i] = row
            break
        end
    end
end
return rows
