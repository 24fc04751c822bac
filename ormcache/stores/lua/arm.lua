-- Announce a commit. KEYS: "*", register of each table (or "*" again). ARGV[4]: the intent.
-- Arming again with the same intent renews its lease.

touch(KEYS[1], KEYS[1])
if lease > (number(redis.call('HGET', KEYS[1], 'l')) or 0) then
  redis.call('HSET', KEYS[1], 'l', lease)
end
for i = 2, #KEYS do
  local register = touch(KEYS[i], KEYS[1])
  -- "*" may have been lost and born again while this register stayed: whatever holds an intent
  -- must be known, so that its loss is noticed.
  redis.call('HSETNX', KEYS[1], 't:' .. string.match(KEYS[i], ':r:(.*)$'), 1)
  local intents = {}
  for id, deadline in string.gmatch(register[3] or '', '([^=,]+)=(%d+)') do
    if not mine(id) then
      intents[#intents + 1] = id .. '=' .. deadline
    end
  end
  intents[#intents + 1] = ARGV[4] .. '=' .. (clock() + lease)
  redis.call('HSET', KEYS[i], 'n', nonce, 'd', table.concat(intents, ','))
end
return 1
