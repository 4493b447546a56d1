-- Reads a page. KEYS: session, messages, values, inflight. ARGV: epoch, after, now (16 digits), records, bytes.
-- Answers {'U'} unknown, {'F', epoch} fenced, or {'P', expired, where to go on or '', then seq, value, note or '' ...}.
local f = redis.call('HMGET', KEYS[1], 'epoch', 'through', 'sent')
if not f[1] then
  return { 'U' }
end
if f[1] > ARGV[1] then
  return { 'F', f[1] }
end
local seen, sent = tonumber(ARGV[2]), tonumber(f[3] or 0)
local now, records_max, bytes_max = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local page, expired, records, bytes = { 'P', 0, '' }, 0, 0, 0
while true do
  local after = string.format('(%.0f', seen)
  local chunk = redis.call('ZRANGEBYSCORE', KEYS[2], after, '+inf', 'LIMIT', 0, 128)
  for _, seq in ipairs(chunk) do
    local note = tonumber(seq) <= sent and redis.call('HGET', KEYS[4], seq) or ''
    -- 16 digits say when it expires; the value follows.
    local value = redis.call('HGET', KEYS[3], seq)
    if note == '' and value:sub(1, 16) <= now then
      expired = expired + 1
    else
      bytes = bytes + #value - 16
      if records > 0 and (records >= records_max or bytes > bytes_max) then
        page[2], page[3] = tostring(expired), string.format('%.0f', seen)
        return page
      end
      records = records + 1
      page[#page + 1] = seq
      page[#page + 1] = value:sub(17)
      page[#page + 1] = note
    end
    seen = tonumber(seq)
  end
  if #chunk < 128 then
    page[2] = tostring(expired)
    return page
  end
end
