-- Which epoch the store is in: a span in which it has lost nothing. KEYS: the epoch, the stamp of the last sign of life. ARGV: the run
-- of the server, a name for counts that begin anew, how long a new epoch is closed so that pods can bring what they know, the name and
-- the number of the epoch that the pod was in.
-- Where another run has the counts of one before, they are whole up to the stamp that came with them: on disk, in a replica and in a
-- backup is what was there at one moment. Pods bring what they took since (and a second more). Where the pod has seen a later epoch of
-- these counts, this is a server that others have left in between: everybody brings everything.
-- Gives: now, the epoch, when it opens. The epoch is: the counts' name, the run, when it opens, since when, which one of them it is, and
-- the run of the one before.
local text = redis.call('GET', KEYS[1])
local name, run, opens, since, number
if text then name, run, opens, since, number = string.match(text, '^(%S+) (%S+) (%d+) (%d+) (%d+) %S+$') end
local left = name and name == ARGV[4] and tonumber(number) < tonumber(ARGV[5])
if run ~= ARGV[1] or left then
  local before = run or '-'
  if left then
    since, number, before = 0, tonumber(ARGV[5]), '-'
  elseif name then
    since = math.max(math.min(tonumber(redis.call('GET', KEYS[2]) or 0), now) - 1000000, 0)
  else
    name, since, number = ARGV[2], 0, 0
  end
  opens = string.format('%.0f', now + tonumber(ARGV[3]))
  text = string.format('%s %s %s %.0f %.0f %s', name, ARGV[1], opens, since, number + 1, before)
  redis.call('SET', KEYS[1], text, 'PX', 2851200000)
end
return { now, text, tonumber(opens) }
