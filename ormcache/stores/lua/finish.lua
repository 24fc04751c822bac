-- A commit is over. KEYS and ARGV as for arm.lua; an empty intent only makes a fresh nonce.

touch(KEYS[1], KEYS[1])
for i = 2, #KEYS do
  local register = touch(KEYS[i], KEYS[1])
  local intents = {}
  for id, deadline in string.gmatch(register[3] or '', '([^=,]+)=(%d+)') do
    if not mine(id) then
      intents[#intents + 1] = id .. '=' .. deadline
    end
  end
  redis.call('HSET', KEYS[i], 'n', nonce)
  if #intents > 0 then
    redis.call('HSET', KEYS[i], 'd', table.concat(intents, ','))
  else
    redis.call('HDEL', KEYS[i], 'd')
  end
end
return 1
