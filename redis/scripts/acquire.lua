-- KEYS: record, alive. ARGV: 1 holder, 2 attempt, 3 duration, 4 retention (both in
-- milliseconds), 5 how often this was sent; and where the claim says more: 6 the call,
-- if there is no attempt, 7 over, 8 the token to exceed, 9… further fields of the
-- record.
local record, alive = KEYS[1], KEYS[2]
local holder, attempt, duration = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Mostly nobody holds it, and all there is is the last token. (Numbers are exact up to
-- 2^53, and as arguments; but what Lua itself makes of them keeps 14 digits.)
if not ARGV[6] then
  local token, h = now, redis.pcall('HGETALL', record)
  if h[1] and h[3] == nil and h[1] == 'token' and #h[2] <= 16 and string.find(h[2], '^%d+$') then
    token = h[2] + 1
  elseif h[1] or h.err then
    token = now + 1
  end
  if token <= now then
    local text = string.format('%.0f', now)
    local value = text .. ' ' .. duration .. ' ' .. holder
    local set = redis.pcall('SET', alive, value, 'PX', duration, 'NX')
    if set and set.ok then
      local done
      if h[1] then -- HSET leaves the TTL as it is
        done = redis.pcall('PEXPIRE', record, duration + ARGV[4])
        if type(done) == 'number' then
          done = redis.pcall('HSET', record, 'holder', holder, 'token', now, 'duration', duration, 'attempt', attempt)
        end
      else
        done = redis.pcall('HSET', record, 'holder', holder, 'token', now, 'duration', duration, 'attempt', attempt)
        if type(done) == 'number' then
          done = redis.pcall('PEXPIRE', record, duration + ARGV[4])
          if type(done) ~= 'number' then redis.call('DEL', record) end
        end
      end
      if type(done) == 'number' then
        -- Whoever may not publish has waiters that look for themselves. The message tells
        -- all there is to know.
        redis.pcall('SPUBLISH', record, 'granted ' .. #attempt .. ' ' .. attempt .. ' ' .. value)
        return text
      end
      redis.call('DEL', alive) -- it is refused below
    end
  end
end
--%state
local s = read()
local again = attempt ~= '' and s.attempt == attempt or ARGV[6] ~= nil and ARGV[6] ~= '' and s.call == ARGV[6]
if again and not s.bad and s.live and s.by == holder and s.tenure == s.token then
  -- The same acquire, once more.
  if s.lasts ~= forever then
    redis.call('PEXPIRE', alive, s.lasts)
    redis.call('PEXPIRE', record, s.lasts + ARGV[4], 'XX')
  end
  return answer('ok', s)
end
local over = ARGV[7] or ''
if over ~= '' then
  if revision(s) ~= over then return answer('held', s) end
elseif s.bad or s.live then
  return answer('held', s)
end
local floor = math.max(number(s.floor) or 0, tonumber(ARGV[8] or '0'))
local token = math.max(number(s.token) or 0, number(s.atoken) or 0, floor, now - 1) + 1
if token > 9007199254740991 then return answer('exhausted', s) end
local transitions = 0
if not s.bad and (s.by or s.floor) then
  transitions = (number(s.transitions) or 0) + (s.by ~= holder and 1 or 0)
end
local refusal = lacking('del', 'hset', 'set', 'pexpire')
if refusal then return refusal end

redis.call('DEL', record, alive)
redis.call('HSET', record, 'holder', holder, 'token', token, 'duration', duration, 'attempt', attempt)
if attempt == '' then redis.call('HSET', record, 'call', ARGV[6]) end
if token ~= now then redis.call('HSET', record, 'acquired', now) end
if transitions > 0 then redis.call('HSET', record, 'transitions', transitions) end
if floor > 0 then redis.call('HSET', record, 'floor', floor) end
if ARGV[9] then redis.call('HSET', record, unpack(ARGV, 9)) end
token = string.format('%.0f', token)
if duration == forever then
  redis.call('SET', alive, token .. ' ' .. duration .. ' ' .. holder)
else
  redis.call('SET', alive, token .. ' ' .. duration .. ' ' .. holder, 'PX', duration)
  -- A floor must not be forgotten.
  if floor == 0 then redis.call('PEXPIRE', record, duration + ARGV[4]) end
end
redis.pcall('SPUBLISH', record, 'acquired ' .. token)
return string.format('%s %.0f %d', token, now, transitions)
