#!lua flags=no-writes
-- rows: reads jobs with all their columns, or only the columns that a list shows.
-- KEYS waiting delayed active completed failed blocked held expires leases jobs priorities attempts errors results progress unserved limits weights reruns start_by end_by
-- ARGV now, brief (1: the spec up to its payload, the last error, the result record without the result, no progress); then ids
-- RETURNS for the first ids, until 1 MB was read: nil (unknown id, or the job's own retention is over), or state, score,
--   lease token, spec, priority, attempts, errors, result, progress, unserved, limit keys, weights, reruns,
--   and the job's scores in start_by and end_by: nil if it has no such time, or the time does not count any more
local expires, brief = KEYS[8], ARGV[2] == '1'
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local states = { 'waiting', 'delayed', 'active', 'completed', 'failed', 'blocked', 'held' }
local FIRST, SPEC, ERRORS, RESULT, PROGRESS, LAST = 9, 10, 13, 14, 15, 19

-- shared: head of a spec
-- Quotes inside a JSON string are escaped. So these marks match only where a field begins.
local function head(spec)
    local payload = string.find(spec, ',"payload":', 1, true)
    local text = payload and string.sub(spec, 1, payload - 1) or spec
    local metadata = string.find(text, ',"metadata":', 1, true)
    if metadata then text = string.sub(text, 1, metadata - 1) end
    return (payload or metadata) and text .. '}' or string.sub(text, 1, 4096)
end
-- end

-- Redis reads values as a whole. Cut here what a list does not show, so that it is not sent.
local function cut(column, value)
    if column == SPEC then
        return head(value)
    elseif column == ERRORS then
        return string.match(value, '[^\n]*$')
    elseif column == RESULT then
        local record = string.match(value, '^%[%-?%d+,%-?%d+,"[^"]*"')
        return record and record .. ']' or string.sub(value, 1, 256)
    end
    return value
end

local rows, bytes, timed = {}, 0, redis.call('EXISTS', KEYS[LAST + 1], KEYS[LAST + 2]) > 0
for i = 3, #ARGV do
    local id, row = ARGV[i], false
    for s = 1, 7 do
        local score = redis.call('ZSCORE', KEYS[s], id)
        if score then
            row = { states[s], score }
            break
        end
    end
    -- A job whose own retention is over is still stored until the next trim, and nothing trims while no worker runs. Hide it.
    local till = row and redis.call('ZSCORE', expires, id)
    if till and tonumber(till) <= now then row = false end
    for column = FIRST, row and LAST or 0 do
        local value = not (brief and column == PROGRESS) and redis.call('HGET', KEYS[column], id)
        bytes = bytes + #(value or '')
        row[column - 6] = value and brief and cut(column, value) or value
    end
    for column = LAST + 1, row and LAST + 2 or 0 do
        row[column - 6] = timed and redis.call('ZSCORE', KEYS[column], id)
    end
    rows[i - 2] = row
    if bytes > 1000000 then break end
end
return rows
