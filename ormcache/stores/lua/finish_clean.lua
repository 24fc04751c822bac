-- What finish.lua does, for registers that have no intent but the caller's, as most are. It comes
-- before the functions that change registers, which it can do without.

local namespace = redis.pcall('HMGET', KEYS[1], 'n', 'd')
local plain = namespace[1] and not namespace[2]
for i = 2, #KEYS do
  local register = plain and redis.pcall('HMGET', KEYS[i], 'n', 'd')
  plain = register and register[1]
    and string.match(register[2] or '', '^([^=,]+)=%d+$') == ARGV[4]
end
if plain then
  for i = 2, #KEYS do
    redis.call('HSET', KEYS[i], 'n', ARGV[2])
    redis.call('HDEL', KEYS[i], 'd')
  end
  return 1
end
