-- What the database says of overdue intents. KEYS as for arm.lua. ARGV[4]: a moment of this
-- server's clock, ms. ARGV[5]: the horizon, a transaction id that was given out after it. ARGV[6]:
-- the oldest transaction id that was still running after that.
--
-- An intent that was overdue at that moment gets the horizon: its transaction has a lower id. It
-- goes when all transactions with a lower id are over. This command may come late: what is overdue
-- now, and was not then, has nothing to do with that horizon. One that has a higher horizon gets this
-- one, which is as good, and better if the database was restored since and gives out lower ids.

touch(KEYS[1], KEYS[1])
for i = 2, #KEYS do
  local register = touch(KEYS[i], KEYS[1])
  local intents, gone = {}, false
  for id, deadline in string.gmatch(register[3] or '', '([^=,]+)=(%d+)') do
    if string.sub(id, 1, 1) == '@' and tonumber(deadline) <= tonumber(ARGV[4]) then
      local base, horizon = string.match(id, '^(.-)!(%d+)$')
      if not horizon or tonumber(horizon) > tonumber(ARGV[5]) then
        horizon = ARGV[5]
        id = (base or id) .. '!' .. horizon
      end
      if tonumber(ARGV[6]) >= tonumber(horizon) then
        gone = true
        id = nil
      end
    end
    if id then
      intents[#intents + 1] = id .. '=' .. deadline
    end
  end
  if gone then
    redis.call('HSET', KEYS[i], 'n', nonce)
  end
  if #intents > 0 then
    redis.call('HSET', KEYS[i], 'd', table.concat(intents, ','))
  else
    redis.call('HDEL', KEYS[i], 'd')
  end
end
return 1
