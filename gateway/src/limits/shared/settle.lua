-- Corrections after the answers. ARGV, for each key: kind and
--   rate         microseconds to move the level by
--   concurrency  the lease that ends
--   budget       tokens and billionths of a dollar to add
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1704067200) * 1000000 + tonumber(time[2])
local at = 1
for i = 1, #KEYS do
  local key, kind = KEYS[i], ARGV[at]
  if kind == 'r' then
    local by, was = tonumber(ARGV[at + 1]), tonumber(redis.call('GET', key) or '0')
    local level = (by > 0 and math.max(was, now) or was) + by
    if level > now then
      redis.call('SET', key, string.format('%.3f', level), 'PX', math.ceil((level - now) / 1000) + 1000)
    else
      redis.call('DEL', key)
    end
    at = at + 2
  elseif kind == 'c' then
    redis.call('ZREM', key, ARGV[at + 1])
    at = at + 2
  else
    if redis.call('EXISTS', key) == 1 then
      redis.call('HINCRBY', key, 't', ARGV[at + 1])
      redis.call('HINCRBY', key, 'n', ARGV[at + 2])
    end
    at = at + 3
  end
end
return 0
