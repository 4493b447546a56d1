-- Opens sessions. KEYS: the five keys of each session. ARGV: the epoch of each, 20 digits.
-- Answers for each: {'F', epoch} fenced, or {present, last, sent, records, bytes, has will, will, due,
-- received ids ...}.
local answers = {}
for i = 1, #ARGV do
  local session, received = KEYS[5 * i - 4], KEYS[5 * i]
  local f = redis.call('HMGET', session, 'epoch', 'last', 'records', 'bytes', 'will', 'due', 'sent')
  if f[1] and f[1] > ARGV[i] then
    answers[i] = { 'F', f[1] }
  else
    if f[1] ~= ARGV[i] then
      redis.call('HSET', session, 'epoch', ARGV[i])
    end
    local answer = {
      f[1] and '1' or '0', f[2] or '0', f[7] or '0', f[3] or '0', f[4] or '0', f[5] and '1' or '0', f[5] or '', f[6] or '',
    }
    for _, id in ipairs(redis.call('SMEMBERS', received)) do
      answer[#answer + 1] = id
    end
    answers[i] = answer
  end
end
return answers
