-- KEYS: record, alive. ARGV: 1 holder, 2 token, 3 whether the tenure was seen expired,
-- 4 retention (milliseconds), 5 how often this was sent.
local record, alive = KEYS[1], KEYS[2]
local holder, token = ARGV[1], ARGV[2]

-- Mostly it is live, and all is as it was granted.
if ARGV[3] == '0' then
  local v = redis.pcall('GET', alive)
  local current, duration, by
  if type(v) == 'string' then current, duration, by = string.match(v, '^(%d+) (%d+) (.+)$') end
  if current == token and by == holder and redis.pcall('HGET', record, 'token') == token and redis.pcall('HLEN', record) == 4
    and redis.pcall('DEL', alive) == 1 and redis.pcall('HDEL', record, 'holder', 'duration', 'attempt') == 3 then
    -- The TTL is that of the tenure and the retention: good enough for one of seconds.
    if #duration > 5 then redis.call('PEXPIRE', record, ARGV[4]) end
    redis.pcall('SPUBLISH', record, 'released ' .. token)
    return 'released'
  end
end
--%state
local s = read()
if not (s.by == holder and s.tenure == token) then
  if not s.by and not s.bad and s.token == token and ARGV[5] ~= '1' then
    return 'released' -- by the first sending of this very call
  end
  return answer('lost', s)
end
if ARGV[3] == '1' and s.live or s.foreign then return answer('lost', s) end
local refusal = lacking('del', 'hset', 'pexpire')
if refusal then return refusal end
if s.bad then
  -- The tenure lives in the other key. What is wrong stays, for a person to see.
  redis.call('DEL', alive)
  redis.pcall('SPUBLISH', record, 'edited')
  return 'released'
end
if s.floor then
  redis.call('DEL', record, alive)
  redis.call('HSET', record, 'token', token, 'floor', s.floor, 'transitions', s.transitions or '0')
  redis.pcall('SPUBLISH', record, 'vacated ' .. token)
  return 'released'
end
redis.call('DEL', record, alive)
redis.call('HSET', record, 'token', token)
redis.call('PEXPIRE', record, ARGV[4])
redis.pcall('SPUBLISH', record, 'released ' .. token)
return 'released'
