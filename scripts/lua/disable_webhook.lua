#!lua flags=allow-oom
-- disable_webhook: notes that jobq has stopped telling a webhook, and why, if its row is still the one that was read.
-- KEYS webhooks webhook_facts
-- ARGV name, the row that was read, reason
-- RETURNS 1, or 0 if it was changed or removed meanwhile, or was disabled already
local webhooks, webhook_facts = unpack(KEYS)
-- Somebody may have given it another address, and the old one is no reason to disable that.
if redis.call('HGET', webhooks, ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HSETNX', webhook_facts, 'disabled:' .. ARGV[1], ARGV[3])
