-- All reservations of a request, or none. Times are microseconds from 2024 on, so that a double keeps fractions of them.
-- KEYS[1] names the gateways that are there; then one key for each reservation.
-- ARGV: lease, then for each reservation: kind, may be refused (1) or only counted (0), and
--   rate         amount, microseconds for one, burst
--   concurrency  most, seconds that a lease lasts at most
--   budget       tokens, billionths of a dollar, most of each (-1 for no bound), seconds until the key may go,
--                what the asking gateway alone has spent of each
-- Returns for each reservation: 1 or 0, remaining, microseconds until it is full, microseconds until it would pass.
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1704067200) * 1000000 + tonumber(time[2])
local lease = ARGV[1]
local at, out, writes, refused = 2, {}, {}, false
local function take(n) local a = at; at = at + n; return a end
local function text(x) return string.format('%.3f', x) end
for i = 2, #KEYS do
  local key, kind, strict = KEYS[i], ARGV[at], ARGV[at + 1] == '1'
  at = at + 2
  local ok, remaining, reset, wait = true, 0, 0, 0
  if kind == 'r' then
    local a = take(3)
    local amount, every, burst = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local full = math.max(tonumber(redis.call('GET', key) or '0'), now)
    local after = full + amount * every
    wait = math.max(after - now - burst * every, 0)
    ok = wait <= 0
    local level = ok and after or full
    reset = level - now
    remaining = math.max(math.floor(burst - reset / every + 0.001), 0)
    if ok then writes[#writes + 1] = {'SET', key, text(after), 'PX', math.ceil(reset / 1000) + 1000} end
  elseif kind == 'c' then
    local a = take(2)
    local most, seconds = tonumber(ARGV[a]), tonumber(ARGV[a + 1])
    redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now))
    ok = redis.call('ZCARD', key) < most
    wait = ok and 0 or 1000000
    if ok then
      writes[#writes + 1] = {'ZADD', key, text(now + seconds * 1000000), lease}
      writes[#writes + 1] = {'EXPIRE', key, seconds}
    end
  else
    local a = take(7)
    local tokens, nanos = tonumber(ARGV[a]), tonumber(ARGV[a + 1])
    local most_tokens, most_nanos = tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
    local spent = redis.call('HMGET', key, 't', 'n')
    local t = math.max(tonumber(spent[1] or '0'), tonumber(ARGV[a + 5]))
    local n = math.max(tonumber(spent[2] or '0'), tonumber(ARGV[a + 6]))
    ok = not ((most_tokens >= 0 and (t >= most_tokens or t + tokens > most_tokens))
      or (most_nanos >= 0 and (n >= most_nanos or n + nanos > most_nanos)))
    -- One that lets requests go on counts what they use beyond it.
    if ok or not strict then
      writes[#writes + 1] = {'HSET', key, 't', string.format('%.0f', t + tokens), 'n', string.format('%.0f', n + nanos)}
      writes[#writes + 1] = {'EXPIRE', key, tonumber(ARGV[a + 4])}
    end
  end
  if strict and not ok then refused = true end
  out[#out + 1] = ok and 1 or 0
  out[#out + 1] = remaining
  out[#out + 1] = math.ceil(reset)
  out[#out + 1] = math.ceil(wait)
end
if not refused then
  for _, write in ipairs(writes) do redis.call(unpack(write)) end
end
return out
