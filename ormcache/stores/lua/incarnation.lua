-- A server that was restarted, demoted or promoted is another one: ARGV[1] is the replication id
-- that the caller believes in.

local info = redis.call('INFO', 'replication')
if not string.find(info, 'role:master', 1, true)
    or not string.find(info, 'master_replid:' .. ARGV[1], 1, true) then
  return redis.error_reply('ORMCACHE another incarnation of this server')
end
