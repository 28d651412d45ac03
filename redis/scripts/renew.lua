-- KEYS: record, alive. ARGV: 1 holder, 2 token, 3 retention (milliseconds), 4 whether
-- all is to be told, 5 how often this was sent.
local record, alive = KEYS[1], KEYS[2]
local v = redis.pcall('GET', alive)
local mine = false
if type(v) == 'string' then
  local current, duration, by = string.match(v, '^(%d+) (%d+) (.+)$')
  if current == ARGV[2] and by == ARGV[1] then
    mine = true
    if duration ~= '2147483647000' then
      local done = redis.pcall('PEXPIRE', alive, duration)
      if type(done) == 'table' then return done end -- refused, and nothing was done
      -- XX: the record of a name with a floor is kept for ever.
      redis.call('PEXPIRE', record, duration + ARGV[3], 'XX')
    end
    if ARGV[4] == '0' then
      local now = redis.call('TIME')
      return 'renewed ' .. duration .. ' ' .. now[1] .. ' ' .. now[2]
    end
  end
end
--%state
local s = read()
-- A seal is there whatever else is missing.
mine = mine or s.seal and not s.bad and s.by == ARGV[1] and s.tenure == ARGV[2]
return answer(mine and 'ok' or 'lost', s)
