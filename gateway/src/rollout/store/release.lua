-- Releases the lead of a rollout, if the gateway still has it. KEYS: lead. ARGV: gateway.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
