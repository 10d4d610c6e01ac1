// Request streams, as protocols/request/README.md has them: a header of 12 bytes and a body. `Requests` is one stream as
// one side sees it; this peer asks one question a stream, and answers what comes one after the other.
import { Fault, concat, textOf } from './cbor.js'

const NAMES = [null, 'Ask', 'Cancel', 'Limits', 'Reply', 'Fault', 'Drain']
const MAX_BODY = 1048576
const AT_ONCE = 8 // requests, and bytes of them, that there may be before Limits; this peer allows no more afterwards
const AT_ONCE_BYTES = 65536
const MAX_DIALOGUES = 64
const CODES = { EXPIRED: 6, NO_CAPACITY: 13 } // of faults that end no stream
const refuse = (code, what) => { throw new Fault(code, what) }

export function requestFrame (name, number, value = 0, body = new Uint8Array(0)) {
  const head = new DataView(new ArrayBuffer(12))
  head.setUint32(0, NAMES.indexOf(name) * 2 ** 24 + body.length)
  head.setUint32(4, number)
  head.setUint32(8, value)
  return concat(new Uint8Array(head.buffer), body)
}

// A header, judged for itself, before anything of its body is waited for.
function judge (bytes) {
  const head = new DataView(bytes.buffer, bytes.byteOffset, 12)
  const [name, size, number, value] = [NAMES[head.getUint8(0)], head.getUint32(0) % 2 ** 24, head.getUint32(4), head.getUint32(8)]
  const within = (what, low, high) => { if (what < low || what > high) refuse('OVERSIZED', `${what} is outside of ${low}..${high}`) }
  if (name === undefined || name === null) refuse('MALFORMED', 'a kind that there is not')
  if (name === 'Ask' || name === 'Reply') within(size, 0, MAX_BODY)
  else if (name === 'Fault') within(size, 0, 1024)
  else if (name === 'Limits') within(size, 0, 0)
  else if (size !== 0) refuse('MALFORMED', `${name} with a body`)
  if (name === 'Ask') within(value, 1, 600000)
  else if (name === 'Fault') within(value, 1, 255)
  else if (name === 'Limits') {
    within(number, 8, 4096)
    within(value, 65536, 67108864)
  } else if (value !== 0) refuse('MALFORMED', `${name} with a value`)
  return { name, size, number, value }
}

export class Requests {
  constructor (role, limits = { requests: AT_ONCE, bytes: AT_ONCE_BYTES }) {
    this.role = role
    this.limits = limits
    this.open = false // Limits was said, or heard
    this.drained = null // number of the Drain
    this.last = 0
    this.underWay = new Map() // number to bytes
    this.cancelled = new Set()
    this.held = new Uint8Array(0)
  }

  // What was heard: { name, number, value, body } each. No bytes at all are the end of the stream.
  hear (bytes) {
    const heard = []
    if (bytes.length === 0) {
      const owed = [...this.underWay.keys()].some((number) => this.drained === null || number <= this.drained)
      if (this.held.length > 0 || (this.role === 'requester' && owed)) refuse('OUT_OF_ORDER', 'an end before its time')
      return [{ name: 'StreamOver' }]
    }
    this.held = concat(this.held, bytes)
    while (this.held.length >= 12) {
      const head = judge(this.held)
      const fits = this.role === 'provider' ? this.allowsOfRequester(head) : this.allowsOfProvider(head)
      if (this.held.length < 12 + head.size) break
      const body = this.held.subarray(12, 12 + head.size)
      this.held = this.held.subarray(12 + head.size)
      if (head.name === 'Fault') head.detail = textOf(body)
      this.note(head)
      if (fits) heard.push({ ...head, body })
    }
    return heard
  }

  // A frame of our own.
  say (name, number, value = 0, body = new Uint8Array(0)) {
    this.note({ name, number, size: body.length })
    return requestFrame(name, number, value, body)
  }

  note ({ name, number, size }) {
    if (name === 'Ask') {
      this.last = number
      if (this.role === 'requester' || this.drained === null) this.underWay.set(number, size)
    } else if (name === 'Cancel') this.cancelled.add(number)
    else if (name === 'Limits') this.open = true
    else if (name === 'Drain') this.drained = number
    else this.underWay.delete(number)
  }

  // Whether it is to be acted on; what is wrong is refused.
  allowsOfRequester ({ name, number, size }) {
    if (name === 'Ask') {
      if (number > 0 && number <= this.last) refuse('REPLAYED', 'a number that was used')
      if (number !== this.last + 1) refuse('OUT_OF_ORDER', 'not the next number')
      const bytes = [...this.underWay.values()].reduce((a, b) => a + b, size)
      if (this.underWay.size + 1 > this.limits.requests || bytes > this.limits.bytes) refuse('OVERSIZED', 'more at once than is allowed')
      return this.drained === null
    }
    if (name !== 'Cancel' || number < 1 || number > this.last) refuse('OUT_OF_ORDER', `${name} of the requester`)
    if (this.cancelled.has(number)) refuse('REPLAYED', 'a second cancel')
    return this.underWay.has(number)
  }

  allowsOfProvider ({ name, number }) {
    if (name === 'Ask' || name === 'Cancel' || (name === 'Limits') === this.open) refuse('OUT_OF_ORDER', `${name} of the provider`)
    if (name === 'Drain' && (this.drained !== null || number > this.last)) refuse('OUT_OF_ORDER', 'a drain after what was not asked, or a second one')
    if (name === 'Reply' || name === 'Fault') {
      if (!this.underWay.has(number) || (this.drained !== null && number > this.drained)) refuse('OUT_OF_ORDER', 'an answer that nobody asked for')
    }
    return true
  }
}

// Asks one question, and gives the answer's body.
export async function ask (stream, reader, sendAll, body, ms) {
  const requests = new Requests('requester')
  await sendAll(stream, requests.say('Ask', 1, ms, body))
  for (;;) {
    for (const { name, number, value, detail, body: answer } of requests.hear(await reader.some() ?? new Uint8Array(0))) {
      if (name === 'Fault') throw new Error(`fault ${value}: ${detail}`)
      if (name === 'Drain' && number < 1) throw new Error('it drains, and has not begun')
      if (name === 'Reply') {
        await stream.close()
        return answer
      }
    }
  }
}

// Answers every question by `answer`, from body to body or to a promise of one, until the other side closes.
export async function answerAll (stream, reader, sendAll, answer) {
  const requests = new Requests('provider')
  await sendAll(stream, requests.say('Limits', AT_ONCE, AT_ONCE_BYTES))
  for (;;) {
    for (const { name, number, body } of requests.hear(await reader.some() ?? new Uint8Array(0))) {
      if (name === 'StreamOver') return
      if (name !== 'Ask') continue
      const said = await answer(body)
      if (said instanceof Fault) await sendAll(stream, requests.say('Fault', number, CODES[said.code], new TextEncoder().encode(said.message)))
      else await sendAll(stream, requests.say('Reply', number, 0, said))
    }
  }
}

// A dialogue of several steps in requests, with the ends of a stream: what is said before the next step is waited for is
// the answer to the step before.
class Steps {
  constructor () {
    this.step = 0 // the next one
    this.heard = null
    this.said = new Uint8Array(0)
    this.question = null // a step that is not answered
    this.over = false
    this.wake = () => {}
  }

  // The answer to a step; it fails where the dialogue breaks its protocol.
  ask (bytes) {
    this.step++
    this.heard = bytes
    return new Promise((resolve, reject) => {
      this.question = { resolve, reject }
      this.wake()
    })
  }

  leave () {
    this.over = true
    this.wake()
  }

  // As a reader has it: bytes, or null once the other side has left.
  async some () {
    if (this.heard === null) this.settle(new Fault('MALFORMED', 'a step of a dialogue is not a whole message'))
    while (this.heard === null && !this.over) await new Promise((resolve) => { this.wake = resolve })
    const heard = this.heard
    this.heard = null
    return heard
  }

  say (bytes) { this.said = concat(this.said, bytes) }

  // What was said is the answer; where there is none the step fails.
  settle (error) {
    const [question, said] = [this.question, this.said]
    if (question === null) return
    this.question = null
    this.said = new Uint8Array(0)
    if (said.length > 0) question.resolve(said)
    else question.reject(error)
  }
}

// The dialogues of one protocol. `serve` gets each of them as a stream, which is its own reader, and whose it is.
export class Dialogues {
  constructor (serve) {
    this.serve = serve
    this.open = new Map()
  }

  // The answer to a request of this peer: bytes, or a Fault.
  async answer (requester, body) {
    if (body.length < 9) refuse('MALFORMED', 'a step of a dialogue without its number')
    const key = `${requester} ${new DataView(body.buffer, body.byteOffset, 8).getBigUint64(0)}`
    const [step, said] = [body[8], body.subarray(9)]
    if (step === 0) {
      if (said.length === 0) refuse('MALFORMED', 'a dialogue that begins with nothing')
      if (this.open.has(key)) refuse('REPLAYED', 'a dialogue was begun twice')
      if (this.open.size === MAX_DIALOGUES) return new Fault('NO_CAPACITY', 'too many dialogues at once')
    } else if (!this.open.has(key)) return new Fault('EXPIRED', 'this dialogue is over')
    const steps = this.open.get(key) ?? this.begin(key, requester)
    if (step > 0 && said.length === 0) {
      steps.leave()
      return said
    }
    if (step !== steps.step) refuse('OUT_OF_ORDER', 'a step of a dialogue out of its turn')
    return await steps.ask(said)
  }

  begin (key, requester) {
    const steps = new Steps()
    this.open.set(key, steps)
    const end = (error) => {
      this.open.delete(key)
      steps.settle(error)
    }
    this.serve(steps, requester).then(() => end(new Fault('OUT_OF_ORDER', 'the dialogue is over')), end)
    return steps
  }
}
