-- Which epoch the store is in: the time since which it has not lost anything. KEYS: the epoch. ARGV: the run of the server, a name
-- for a new epoch, how long a new one is closed so that pods can bring what they know.
-- Gives: now, the epoch, when it opens.
local text = redis.call('GET', KEYS[1])
local run, opens
if text then run, opens = string.match(text, '^%S+ (%S+) (%d+)$') end
if run ~= ARGV[1] then
  opens = string.format('%.0f', now + tonumber(ARGV[3]))
  text = ARGV[2] .. ' ' .. ARGV[1] .. ' ' .. opens
  redis.call('SET', KEYS[1], text)
end
return { now, text, tonumber(opens) }
