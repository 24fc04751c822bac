-- Registers: one hash per table, and one ("*") for the whole namespace.
--
--   n   nonce of the current interval without commits; absent in a register that is new here
--   x   counter for programs that know nothing but HINCRBY: part of the nonce
--   d   intents, "id=deadline,id=deadline" in ms of this server's clock; absent when clean. An id
--       that begins with "@" is that of a transaction of which the database can tell whether it is
--       over: it outlasts its deadline, until finish.lua or settle.lua. "!123" at its end is the
--       horizon that settle.lua has given it. "Q" and "@Q" stand for intents that were lost.
--   b   ("*" only) when this namespace was born, ms
--   l   ("*" only) the longest lease that was ever asked for, ms
--   t:… ("*" only) the registers that have ever been made here
--
-- "*" knows which registers exist, so one that is missing and known has been lost (evicted or
-- deleted), and intents may have been lost with it: quarantine. One that is missing and unknown
-- was never there, and is clean unless the namespace itself is younger than a lease; for what "*"
-- waits beyond that, all reads wait. A "*" that was lost has forgotten the longest lease, too: all
-- programs should have the same.
--
-- ARGV[2] is a fresh nonce, ARGV[3] the caller's lease in ms, with "@" in front if the database
-- can tell whether a transaction is over: then it decides on what was lost, too.

local nonce = ARGV[2]
local lease = tonumber(string.match(ARGV[3], '%d+'))
local lost = string.sub(ARGV[3], 1, 1) == '@' and '@Q' or 'Q'
local now = nil

local function clock()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return now
end

-- Nil for what is no number of milliseconds, too.
local function number(text)
  text = string.match(text or '', '^%d+$')
  return text and #text < 14 and tonumber(text) or nil
end

local function live(intents)
  local kept = {}
  for id, deadline in string.gmatch(intents, '([^=,]+)=(%d+)') do
    if tonumber(deadline) > clock() or string.sub(id, 1, 1) == '@' then
      kept[#kept + 1] = id .. '=' .. deadline
    end
  end
  return kept
end

-- Whether this is the intent of the caller, perhaps with a horizon by now.
local function mine(id)
  return id == ARGV[4] or (ARGV[4] ~= '' and string.match(id, '^(@.*)!%d+$') == ARGV[4])
end

local function birth(namespace)
  -- With "*" gone, so may be registers that held intents.
  redis.call('HSET', namespace, 'n', nonce, 'b', clock(), 'l', lease,
    'd', lost .. '=' .. clock() + lease)
end

-- Brings a register up to the present: {nonce, counter, intents or false}.
local function touch(key, namespace)
  local register = redis.pcall('HMGET', key, 'n', 'x', 'd')
  if register.err then
    -- Somebody has put something else there. What it held is lost, as if it were evicted.
    redis.call('DEL', key)
    register = {}
  end
  if not register[1] then
    if key == namespace then
      birth(namespace)
    else
      local new = redis.call('HSETNX', namespace, 't:' .. string.match(key, ':r:(.*)$'), 1) == 1
      local facts = redis.call('HMGET', namespace, 'b', 'l')
      local longest = math.max(number(facts[2]) or 0, lease)
      local id, ends = lost, clock() + longest
      if new then
        id, ends = 'Q', (number(facts[1]) or clock()) + longest
      end
      redis.call('HSET', key, 'n', nonce)
      if ends > clock() then
        redis.call('HSET', key, 'd', id .. '=' .. ends)
      end
    end
    register = redis.call('HMGET', key, 'n', 'x', 'd')
  elseif register[3] then
    local kept = live(register[3])
    if #kept == 0 then
      redis.call('HDEL', key, 'd')
      redis.call('HSET', key, 'n', nonce)
      register = {nonce, register[2], false}
    else
      register[3] = table.concat(kept, ',')
      redis.call('HSET', key, 'd', register[3])
    end
  end
  return register
end
