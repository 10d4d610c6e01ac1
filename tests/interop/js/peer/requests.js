// Request streams, as protocols/request/README.md has them: a header of 12 bytes and a body. This peer asks one question
// a stream, and answers what comes one after the other.
import { Fault, concat, textOf } from './cbor.js'

const [ASK, CANCEL, LIMITS, REPLY, FAULT, DRAIN] = [1, 2, 3, 4, 5, 6]
const MAX_BODY = 1048576
const MAX_MS = 600000
const AT_ONCE = 8 // requests, and as many bytes as there may be before Limits
const AT_ONCE_BYTES = 65536
const refuse = (code, what) => { throw new Fault(code, what) }

function frame (kind, number, value, body = new Uint8Array(0)) {
  const head = new DataView(new ArrayBuffer(12))
  head.setUint32(0, kind * 2 ** 24 + body.length)
  head.setUint32(4, number)
  head.setUint32(8, value)
  return concat(new Uint8Array(head.buffer), body)
}

// The next frame, or null at the end. Its header is judged before its body is waited for.
async function nextFrame (reader) {
  const first = await reader.some()
  if (first === null) return null
  reader.held.unshift(first)
  reader.size += first.length
  const bytes = await reader.exactly(12)
  const head = new DataView(bytes.buffer, bytes.byteOffset, 12)
  const [kind, size, number, value] = [head.getUint8(0), head.getUint32(0) % 2 ** 24, head.getUint32(4), head.getUint32(8)]
  if (kind < ASK || kind > DRAIN) refuse('MALFORMED', `a frame of kind ${kind}`)
  const within = (what, low, high) => { if (what < low || what > high) refuse('OVERSIZED', `${what} is outside of ${low}..${high}`) }
  const zero = (what) => { if (what !== 0) refuse('MALFORMED', 'a field that has to be 0') }
  if (kind === ASK || kind === REPLY) within(size, 0, MAX_BODY)
  else if (kind === FAULT) within(size, 0, 1024)
  else zero(size)
  if (kind === ASK) within(value, 1, MAX_MS)
  else if (kind === FAULT) within(value, 1, 255)
  else if (kind === LIMITS) {
    within(number, 8, 4096)
    within(value, 65536, 67108864)
  } else zero(value)
  return { kind, size, number, value, body: () => reader.exactly(size) }
}

// Opens `id` to whoever is at the other end of a connection, asks, and gives the answer's body.
export async function ask (stream, reader, sendAll, body, ms) {
  await sendAll(stream, frame(ASK, 1, ms, body))
  let limits = false
  for (;;) {
    const { kind, number, value, body: rest } = await nextFrame(reader) ?? refuse('OUT_OF_ORDER', 'an end before the answer')
    if (kind === ASK || kind === CANCEL || (kind === LIMITS) === limits) refuse('OUT_OF_ORDER', `a frame of kind ${kind}`)
    limits = true
    if (kind === DRAIN && number < 1) throw new Error('it drains, and has not begun')
    if (kind === LIMITS || kind === DRAIN) continue
    if (number !== 1) refuse('OUT_OF_ORDER', 'an answer that nobody asked for')
    const answer = await rest()
    await stream.close()
    if (kind === FAULT) throw new Error(`fault ${value}: ${textOf(answer)}`)
    return answer
  }
}

// Answers every question by `answer`, from body to body, until the other side closes.
export async function answerAll (stream, reader, sendAll, answer) {
  await sendAll(stream, frame(LIMITS, AT_ONCE, AT_ONCE_BYTES))
  let last = 0
  const cancelled = new Set()
  for (let asked; (asked = await nextFrame(reader)) !== null;) {
    const { kind, size, number, body } = asked
    if (kind === CANCEL) {
      // whatever was asked is answered by now, so there is nothing to stop
      if (number < 1 || number > last) refuse('OUT_OF_ORDER', 'a cancel of what was not asked')
      if (cancelled.has(number)) refuse('REPLAYED', 'a second cancel')
      cancelled.add(number)
    } else if (kind === ASK) {
      if (number <= last) refuse('REPLAYED', 'a number that was used')
      if (number !== last + 1) refuse('OUT_OF_ORDER', 'not the next number')
      if (size > AT_ONCE_BYTES) refuse('OVERSIZED', 'more bytes than Limits allows')
      last = number
      await sendAll(stream, frame(REPLY, number, 0, answer(await body())))
    } else refuse('OUT_OF_ORDER', `a frame of kind ${kind}`)
  }
  await stream.close()
}
