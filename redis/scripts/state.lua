-- What the two keys of a name hold. The record is a hash: holder, token, duration
-- (milliseconds), attempt; where they are needed: acquired (microseconds since 1970, if
-- that is not the token), call, transitions, metadata, seal, floor. What was released
-- has only its token. alive is a string with the tenure's TTL: "<token> <milliseconds>
-- <holder>". While that is there, the name is held by whom it names, whatever the
-- record says.
local forever = '2147483647000'

-- number is nil for what cannot be a token, which is less than 2^53.
local function number(text)
  local n = text and #text <= 16 and not string.find(text, '%D') and tonumber(text)
  return n and n <= 9007199254740991 and n or nil
end

-- lasting tells whether a text is a duration: at most a year, or that of a seal.
local function lasting(text)
  local n = number(text)
  return n and (n >= 1 and n <= 31536000000 or text == forever)
end

-- checked passes on what a command has answered, but for one: that the key is of
-- another type.
local function checked(v)
  if type(v) == 'table' and v.err and not string.find(v.err, 'WRONGTYPE', 1, true) then error(v) end
  return v
end

-- lacking returns the refusal of a user who may not run all of the commands: of a
-- script that may not do all it does, the first half would stay done.
local function lacking(...)
  for _, command in ipairs({...}) do
    if not redis.acl_check_cmd(command, record) then
      return redis.error_reply('NOPERM this user has no permissions to run ' .. command)
    end
  end
end

local function read()
  local r = checked(redis.pcall('HMGET', record, 'format', 'holder', 'token', 'attempt', 'call', 'duration',
    'acquired', 'transitions', 'metadata', 'seal', 'floor'))
  local s = {}
  if r.err then
    s.bad = 'it is no hash'
  else
    s.format, s.holder, s.token, s.attempt, s.call, s.duration = r[1], r[2], r[3], r[4], r[5], r[6]
    s.acquired, s.transitions, s.metadata, s.seal, s.floor = r[7], r[8], r[9], r[10], r[11]
  end
  local v = checked(redis.pcall('GET', alive))
  if v and type(v) ~= 'string' then
    s.bad, s.foreign = 'its other key, ' .. alive .. ', is no string', true
  elseif v then
    s.alive = v
    s.atoken, s.aduration, s.aholder = string.match(v, '^(%d+) (%d+) (.+)$')
    if not (number(s.atoken) and lasting(s.aduration)) then
      s.bad, s.atoken, s.foreign = 'its other key, ' .. alive .. ', was not written by Leasehold', nil, true
    end
  end
  if s.bad then
  elseif s.format and s.format ~= '1' then
    s.bad = 'it is of format ' .. s.format .. ', this program knows 1: use a newer Leasehold'
  elseif not s.token and (s.holder or redis.call('EXISTS', record) == 1) then
    s.bad = 'it was not written by Leasehold: it has no token'
  elseif s.token and not number(s.token) or s.floor and not number(s.floor) then
    s.bad = 'its token or its floor is no number, or too great'
  elseif s.holder and (not lasting(s.duration) or s.duration == forever and not s.seal) then
    s.bad = 'its duration is wrong'
  elseif s.seal and not s.holder then
    s.bad = 'it has a seal and no holder'
  elseif s.aduration == forever and not s.seal then
    s.bad = 'the record of a seal is missing'
  end
  -- The tenure that is in force or was the last.
  s.live = s.atoken and true or s.seal and true or false
  if s.atoken and not s.seal then
    s.by, s.tenure, s.lasts = s.aholder, s.atoken, s.aduration
  elseif s.holder then
    s.by, s.tenure, s.lasts = s.holder, s.token, s.duration
  end
  return s
end

-- revision changes with every write but a renewal, and not by expiry.
local function revision(s)
  if s.bad then
    local kind = redis.call('TYPE', record).ok
    local text = ''
    if kind == 'hash' then
      text = table.concat(redis.call('HGETALL', record), '\n')
    elseif kind == 'string' then
      text = redis.call('GETRANGE', record, 0, 65535)
    end
    return 'corrupt-' .. kind .. '-' .. string.sub(redis.sha1hex(text .. '\n' .. (s.alive or '')), 1, 16)
  elseif s.by then
    return s.tenure
  elseif s.floor then
    return 'vacant-' .. s.token
  end
  return ''
end

-- answer is what Go reads: the verdict, and the state that led to it.
local function answer(verdict, s)
  local left = s.atoken and redis.call('PTTL', alive) or -2
  local now = redis.call('TIME')
  -- What the record says of its tenure is of no interest if another is in force.
  local own = s.token == s.tenure
  local a = {verdict, revision(s), s.bad, s.by, s.tenure, s.lasts, own and s.attempt, own and s.acquired, s.transitions,
    own and s.metadata, s.seal, s.floor, s.live and 1 or 0, left, now[1], now[2]}
  for i = 1, 16 do a[i] = a[i] or false end -- a nil would be the end
  return a
end
