-- What the database says of overdue intents. KEYS as for arm.lua. ARGV[4]: the horizon, a
-- transaction id that was new just now. ARGV[5]: the oldest transaction id that is still running.
--
-- An overdue intent whose transaction may be running gets the horizon: whatever had an id when
-- the intent was found overdue has a lower one. It goes when all of these are over.

touch(KEYS[1], KEYS[1])
for i = 2, #KEYS do
  local register = touch(KEYS[i], KEYS[1])
  local intents, gone = {}, false
  for id, deadline in string.gmatch(register[3] or '', '([^=,]+)=(%d+)') do
    if string.sub(id, 1, 1) == '@' and tonumber(deadline) <= clock() then
      local horizon = string.match(id, '!(%d+)$')
      if not horizon then
        horizon = ARGV[4]
        id = id .. '!' .. horizon
      end
      if tonumber(ARGV[5]) >= tonumber(horizon) then
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
