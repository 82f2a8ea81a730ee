-- Says that a pod lives and what places it holds. KEYS: the epoch, the stamp of the last sign of life, groups of pods, then places.
-- ARGV: epoch, pod, groups, life of a pod's mark, and for each place: number, held, life.
-- Gives 0, now, and how many pods each group has.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return { 1, now } end
local pod, groups, life = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local out = { 0, now }
-- Longer than the longest window: what is counted is over before these are.
redis.call('PEXPIRE', KEYS[1], 2851200000)
redis.call('SET', KEYS[2], string.format('%.0f', now), 'PX', 2851200000)
for i = 1, groups do
  local key = KEYS[2 + i]
  redis.call('ZADD', key, now, pod)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - life)
  redis.call('PEXPIRE', key, math.ceil(life / 1000) + 60000)
  out[#out + 1] = redis.call('ZCARD', key)
end
for i = 1, #KEYS - 2 - groups do
  local at = 2 + 3 * i
  hold(places(KEYS[2 + groups + i]), pod, tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]))
end
return out
