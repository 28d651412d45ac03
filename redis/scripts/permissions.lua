-- Which of the commands ARGV[1]… this user may not run on these keys.
local missing = {}
for _, command in ipairs(ARGV) do
  if not redis.acl_check_cmd(command, KEYS[1]) then missing[#missing + 1] = command end
end
return missing
