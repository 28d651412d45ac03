-- KEYS: record, alive. ARGV: how often this was sent.
local record, alive = KEYS[1], KEYS[2]
--%state
return answer('ok', read())
