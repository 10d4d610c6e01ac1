// Frames on a stream, and the tables of states: who may say what when.
import { Fault, concat } from './cbor.js'
import { adsMessages, channelMessages, negotiationMessages, taskMessages } from './messages.js'

export const MAX_FRAME_BYTES = 65536
export const MAX_DATA_FRAME_BYTES = 262208

// [state, who may speak, message, next state]
const rows = (text) => text.trim().split('\n').map((row) => row.trim().split(' '))
export const PROTOCOLS = {
  '/p2pcompute/ads/2': {
    messages: adsMessages,
    max: 64 * 8192 + 1024,
    final: ['IDLE'],
    table: rows(`
      IDLE requester AdQuery ASKED
      ASKED provider AdBatch IDLE
      ASKED provider AdRefusal IDLE`)
  },
  '/p2pcompute/negotiation/5': {
    messages: negotiationMessages,
    max: MAX_FRAME_BYTES,
    final: ['IDLE', 'BIDDEN', 'REFUSED', 'AGREED'],
    table: rows(`
      IDLE requester OrderFrame ORDERED
      ORDERED provider BidFrame BIDDEN
      ORDERED provider RefusalFrame REFUSED
      BIDDEN requester ProposeFrame PROPOSED
      BIDDEN requester OrderFrame ORDERED
      PROPOSED provider AcceptFrame AGREED
      PROPOSED provider RefusalFrame REFUSED
      REFUSED requester OrderFrame ORDERED`)
  },
  '/p2pcompute/task/3': {
    messages: taskMessages,
    max: MAX_DATA_FRAME_BYTES,
    final: ['IDLE', 'CLOSED'],
    table: rows(`
      IDLE requester Open OPENING
      OPENING requester Finish FINISHING
      OPENING provider Opened SETUP
      OPENING provider Refused CLOSED
      SETUP requester BlobStart SETUP
      SETUP requester BlobData SETUP
      SETUP requester Share SETUP
      SETUP requester Finish FINISHING
      SETUP provider Ready RUNNING
      SETUP provider ChunkError SETUP
      SETUP provider Refused CLOSED
      SETUP provider Notice SETUP
      RUNNING requester BlobStart RUNNING
      RUNNING requester BlobData RUNNING
      RUNNING requester Share RUNNING
      RUNNING requester Call RUNNING
      RUNNING requester Assign RUNNING
      RUNNING requester Cancel RUNNING
      RUNNING requester Finish FINISHING
      RUNNING requester GetState RUNNING
      RUNNING provider ResultStart RUNNING
      RUNNING provider ResultData RUNNING
      RUNNING provider ChunkError RUNNING
      RUNNING provider Notice RUNNING
      RUNNING provider Refused CLOSED
      RUNNING provider StateStart RUNNING
      RUNNING provider StateData RUNNING
      RUNNING provider StateGone RUNNING
      RUNNING provider Results RUNNING
      FINISHING provider Opened FINISHING
      FINISHING provider Ready FINISHING
      FINISHING provider ResultStart FINISHING
      FINISHING provider ResultData FINISHING
      FINISHING provider ChunkError FINISHING
      FINISHING provider Notice FINISHING
      FINISHING provider Refused CLOSED
      FINISHING provider Closed CLOSED
      FINISHING provider StateStart FINISHING
      FINISHING provider StateData FINISHING
      FINISHING provider StateGone FINISHING
      FINISHING provider Results FINISHING`)
  },
  '/p2pcompute/channel/2': {
    messages: channelMessages,
    max: MAX_FRAME_BYTES,
    final: ['IDLE', 'OPEN', 'REFUSED', 'CLOSED'],
    table: rows(`
      IDLE requester ChannelHello GREETED
      GREETED provider ChannelSync OPEN
      GREETED provider VoucherRefusal REFUSED
      OPEN requester VoucherFrame PAYING
      OPEN requester CloseAsk CLOSING
      PAYING provider VoucherAck OPEN
      PAYING provider VoucherRefusal OPEN
      CLOSING provider ConsentFrame CLOSED
      CLOSING provider VoucherRefusal OPEN`)
  }
}

export function frame (payload) {
  const length = []
  let size = payload.length
  for (; size >= 128; size >>= 7) length.push((size & 127) | 128)
  return concat(Uint8Array.of(...length, size), payload)
}

// Reads frames from what comes in any pieces.
export class Frames {
  constructor (max) {
    this.max = max
    this.held = new Uint8Array(0)
  }

  push (bytes) { this.held = concat(this.held, bytes) }

  // The next payload, or null where more bytes are wanted.
  next () {
    let size = 0
    for (let at = 0; ; at++) {
      if (at === 4) throw new Fault('OVERSIZED', 'a length of five bytes')
      if (at === this.held.length) return null
      const byte = this.held[at]
      size += (byte & 127) * 2 ** (7 * at)
      if (byte < 128) {
        if (byte === 0 && at > 0) throw new Fault('MALFORMED', 'a length that is not in its shortest form')
        if (size === 0 || size > this.max) throw new Fault('OVERSIZED', `a frame of ${size} bytes`)
        if (this.held.length < at + 1 + size) return null
        const payload = this.held.subarray(at + 1, at + 1 + size)
        this.held = this.held.subarray(at + 1 + size)
        return payload
      }
    }
  }
}

// The one frame that a body of a request stream has.
export function onlyFrame (id, body) {
  const frames = new Frames(PROTOCOLS[id].max)
  frames.push(body)
  const payload = frames.next()
  if (payload === null || frames.held.length > 0) throw new Fault('MALFORMED', 'not exactly one frame')
  return PROTOCOLS[id].messages.decode(payload)
}

// One stream as one side sees it: where it is in the table, whoever moves it.
export class States {
  constructor (id) {
    this.protocol = PROTOCOLS[id]
    this.state = this.protocol.table[0][0]
    this.orders = 0
  }

  move (who, name) {
    const row = this.protocol.table.find(([state, sender, message]) => state === this.state && sender === who && message === name)
    if (row === undefined) throw new Fault('OUT_OF_ORDER', `${name} of the ${who} in ${this.state}`)
    if (name === 'OrderFrame' && ++this.orders > 3) throw new Fault('OVERSIZED', 'more than three orders')
    this.state = row[3]
  }

  get final () { return this.protocol.final.includes(this.state) }
}

// A dialogue on a stream: `receive` gives the other side's next message, or null at its end; `send` says one.
export class Dialogue {
  constructor (id, stream, reader, role, sendAll) {
    this.states = new States(id)
    this.frames = new Frames(this.states.protocol.max)
    this.stream = stream
    this.reader = reader
    this.role = role
    this.other = role === 'provider' ? 'requester' : 'provider'
    this.sendAll = sendAll
    this.rules = { see () {} } // of ./rules.js, once it is known what the dialogue is about
  }

  async receive () {
    for (;;) {
      const payload = this.frames.next()
      if (payload !== null) {
        const said = this.states.protocol.messages.decode(payload)
        this.states.move(this.other, said.name)
        this.rules.see(said.name, said.value)
        return said
      }
      const bytes = await this.reader.some()
      if (bytes === null) {
        if (!this.states.final) throw new Fault('OUT_OF_ORDER', `an end in ${this.states.state}`)
        return null
      }
      this.frames.push(bytes)
    }
  }

  async send (name, value) {
    const payload = this.states.protocol.messages.encode(name, value)
    this.states.move(this.role, name)
    this.rules.see(name, value)
    await this.sendAll(this.stream, frame(payload))
  }
}
