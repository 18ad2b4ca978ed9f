-- Acquires, renews or takes the lead of a rollout.
-- KEYS: lead, fence, state. ARGV: gateway, milliseconds that the lead lasts, 1 to take it from whoever has it.
-- Returns the fencing number of the lead, or 0 where another gateway has it.
local holder = redis.call('GET', KEYS[1])
local known = tonumber(redis.call('GET', KEYS[2]) or '0')
if holder == ARGV[1] and known > 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return known
end
if holder and holder ~= ARGV[1] and ARGV[3] ~= '1' then return 0 end
-- The number outgrows that of the state even where the server has lost the counter.
local fence = math.max(known, tonumber(redis.call('HGET', KEYS[3], 'fence') or '0')) + 1
redis.call('SET', KEYS[2], string.format('%.0f', fence))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return fence
