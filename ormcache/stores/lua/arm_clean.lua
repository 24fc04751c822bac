-- What arm.lua does, for registers that are there, known to "*" and clean, as most are. It comes
-- before the functions that change registers, which it can do without.

local fields = {KEYS[1], 'n', 'd', 'l'}
for i = 2, #KEYS do
  fields[#fields + 1] = 't:' .. string.match(KEYS[i], ':r:(.*)$')
end
-- unpack() gives less than 8000 values.
local facts = #fields < 1000 and redis.pcall('HMGET', unpack(fields)) or {}
local ms = tonumber(string.match(ARGV[3], '%d+'))
local longest = string.match(facts[3] or '', '^%d+$')
local plain = facts[1] and not facts[2] and longest and #longest < 14 and tonumber(longest) >= ms
for i = 2, #KEYS do
  local register = plain and facts[i + 2] and redis.pcall('HMGET', KEYS[i], 'n', 'd')
  plain = register and register[1] and not register[2]
end
if plain then
  local time = redis.call('TIME')
  local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + ms
  for i = 2, #KEYS do
    redis.call('HSET', KEYS[i], 'n', ARGV[2], 'd', ARGV[4] .. '=' .. deadline)
  end
  return 1
end
