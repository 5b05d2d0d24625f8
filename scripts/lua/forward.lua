#!lua flags=allow-oom
-- forward: moves due jobs from delayed to waiting, in the order of their due times.
-- KEYS delayed waiting priorities meta wake
-- ARGV now, limit
-- RETURNS the number of moved jobs; ms until the next job is due (0: due already, -1: no delayed job)
local delayed, waiting, priorities, meta, wake = unpack(KEYS)
local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') now = t[1] * 1000 + math.floor(t[2] / 1000) end
local limit = tonumber(ARGV[2])

-- shared: turn
-- The numbers that give waiting its order. A damaged number starts again behind those of all jobs, and past the bound of rebase.lua,
-- which then gives all jobs low numbers.
local function turn(counter, n)
    local last = redis.pcall('HINCRBY', meta, counter, n)
    if type(last) == 'table' or last < n or last > 2199023255552 then
        last = 1649267441664 + n
        redis.call('HSET', meta, counter, string.format('%.0f', last))
    end
    return last
end
-- end

local due = redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
local moved = #due
if moved > 0 then
    local columns = redis.call('EXISTS', priorities) == 1 and redis.call('HMGET', priorities, unpack(due)) or {}
    local fifo = turn('fifo', moved) - moved
    local ready = {}
    for i = 1, moved do
        local priority, lifo = string.match(columns[i] or '', '^(%-?%d+)(L?)$')
        local number = lifo == 'L' and -turn('lifo', 1) or fifo + i
        ready[2 * i - 1] = (tonumber(priority) or 0) * 4398046511104 + 2199023255552 + number
        ready[2 * i] = due[i]
    end
    redis.call('ZREM', delayed, unpack(due))
    redis.call('ZADD', waiting, unpack(ready))
    redis.call('ZADD', wake, 0, 't')
end
local head = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
local next_due = -1
if head[2] then next_due = math.max(0, math.ceil(tonumber(head[2]) - now)) end
return { moved, next_due }
