// What holds beside the tables of states: the rules of the task and of the channel protocol, for either side. Tiles of
// split inputs are left out, and so is what makes room among the arrays of calls: this peer does not take such work.
import { Fault, equal, hex } from './cbor.js'
import { sha256 } from './envelope.js'
import { sizeOf } from './messages.js'

const refuse = (code, what) => { throw new Fault(code, what) }

export class ChannelRules {
  best = 0n
  pending = 0n

  see (name, value) {
    if (name === 'ChannelSync') this.best = value.amount_uusd
    if (name === 'VoucherFrame') {
      if (value.amount_uusd <= this.best) refuse('BAD_VOUCHER', 'no more than the best one')
      this.pending = value.amount_uusd
    }
    if (name === 'CloseAsk' && value.amount_uusd < this.best) refuse('BAD_VOUCHER', 'less than was paid')
    if (name === 'VoucherAck') {
      if (value.amount_uusd !== this.pending) refuse('OUT_OF_ORDER', 'an ack for another voucher')
      this.best = this.pending
    }
  }
}

// `work`: count of chunks, bytes of each, and blobs (digest in hex to size); of rounds also how many a chunk has, how
// many there are, and the bytes of each array of the state; of a standing agreement `standing`: how many chunks `each`
// call has, and the work's inputs, `args`.
export class TaskRules {
  constructor (work) {
    this.work = work
    this.need = new Set()
    this.blob = null
    this.fetches = false
    this.shared = new Map()
    this.assigned = new Set()
    this.result = 0n // bytes that are still to come
    this.next = 0n
    this.came = new Set()
    this.asked = 0
    this.questions = []
    this.state = 0n
    this.ready = false
    this.failed = false
    this.sizes = work.blobs // of what may come
    this.calls = 0n
    this.called = true // whether a chunk of the newest call was assigned
    this.open = new Map() // number of a call to its inputs
    this.held = new Set() // arrays of calls
  }

  see (name, value) {
    if (this.result > 0n && name === 'ResultData') {
      this.result -= BigInt(value.data.length)
      if (this.result < 0n) refuse('OVERSIZED', 'more bytes than the result has')
    } else if (this.state > 0n && name === 'StateData') {
      this.state -= BigInt(value.data.length)
      if (this.state < 0n) refuse('OVERSIZED', 'more bytes than the state has')
    } else if (this[name] !== undefined) {
      if (PROVIDER.has(name) && (this.result > 0n || this.state > 0n)) refuse('OUT_OF_ORDER', `${name} inside of a result`)
      if (PROVIDER.has(name) && this.failed && name !== 'Refused' && name !== 'Closed') refuse('OUT_OF_ORDER', 'a task goes on that has not compiled')
      this[name](value)
    } else if (name.endsWith('Data')) refuse('OUT_OF_ORDER', 'bytes of nothing')
  }

  Opened ({ need, fetches }) {
    this.fetches = fetches === true
    for (const digest of need) {
      if (!this.work.blobs.has(hex(digest))) refuse('BAD_DIGEST', 'a blob of another task')
      this.need.add(hex(digest))
    }
  }

  Share ({ digest, root, ticket, holders }) {
    const key = hex(digest)
    if (!this.fetches) refuse('OUT_OF_ORDER', 'a share that the provider does not take')
    if (!this.work.blobs.has(key)) refuse('BAD_DIGEST', 'a blob of another task')
    if (this.blob !== null && equal(this.blob.digest, digest)) refuse('OUT_OF_ORDER', 'a blob whose bytes are coming')
    const known = this.shared.get(key) ?? { root, ticket, holders: 0 }
    if (!equal(known.root, root) || !equal(known.ticket, ticket)) refuse('BAD_DIGEST', 'another root or ticket')
    if (this.shared.has(key) && holders.length === 0) refuse('REPLAYED', 'a further share of nobody')
    known.holders += holders.length
    if (known.holders > 16) refuse('OVERSIZED', 'too many holders')
    this.shared.set(key, known)
    this.need.delete(key)
  }

  BlobStart ({ digest, size }) {
    if (this.blob !== null) refuse('OUT_OF_ORDER', 'a blob inside of a blob')
    if (!this.need.delete(hex(digest))) refuse('BAD_DIGEST', 'a blob that was not asked for')
    if (size !== this.sizes.get(hex(digest))) refuse('OVERSIZED', 'a blob of another size')
    this.blob = { digest, left: size, parts: [] }
  }

  BlobData ({ data }) {
    if (this.blob === null) refuse('OUT_OF_ORDER', 'bytes without a blob')
    this.blob.left -= BigInt(data.length)
    this.blob.parts.push(data)
    if (this.blob.left < 0n) refuse('OVERSIZED', 'more bytes than the blob has')
    if (this.blob.left > 0n) return
    if (!equal(sha256(...this.blob.parts), this.blob.digest)) refuse('BAD_DIGEST', 'other bytes than the digest says')
    this.blob = null
  }

  Ready () {
    if (this.need.size > 0 || this.blob !== null) refuse('OUT_OF_ORDER', 'ready before the blobs came')
    this.ready = true
  }

  Call ({ call, args }) {
    const { standing } = this.work
    if (standing === undefined || this.awaits()) refuse('OUT_OF_ORDER', 'a call that can\'t come now')
    if (call !== this.calls) refuse(call < this.calls ? 'REPLAYED' : 'OUT_OF_ORDER', `call ${call} in place of ${this.calls}`)
    if (!this.called) refuse('OUT_OF_ORDER', 'a call behind one without a chunk')
    const closes = call - 256n
    if ((call + 1n) * standing.each > 1048576n || [...this.assigned].some((index) => index / standing.each === closes)) refuse('OVERSIZED', 'too many calls')
    if (args.length !== standing.args.length || !args.every((arg, i) => alike(arg, standing.args[i]))) refuse('MALFORMED', 'other inputs than the work\'s')
    this.open.set(this.calls++, args)
    this.called = false
    this.open.delete(closes)
  }

  awaits () { return this.need.size > 0 || this.blob !== null }

  Assign ({ index, count }) {
    const chunks = span(index, count)
    const last = chunks[chunks.length - 1]
    const { rounds, standing } = this.work
    if (count !== undefined && rounds !== undefined) refuse('OUT_OF_ORDER', 'rounds are assigned one by one')
    if (standing !== undefined && index / standing.each !== last / standing.each) refuse('OUT_OF_ORDER', 'chunks of two calls')
    this.Cancel({ index: last })
    if (chunks.some((one) => this.assigned.has(one))) refuse('REPLAYED', 'a chunk that is assigned already')
    if (this.assigned.size + chunks.length > 256) refuse('OVERSIZED', 'too many chunks at once')
    if (standing !== undefined) this.due(index / standing.each)
    if (this.work.rounds !== undefined && index !== this.next++) refuse('OUT_OF_ORDER', 'rounds come in their order, once')
    for (const one of chunks) this.assigned.add(one)
  }

  // The arrays of a call that are not held follow its chunk.
  due (call) {
    if (this.awaits()) refuse('OUT_OF_ORDER', 'a chunk before the arrays of the last one')
    if (!this.open.has(call)) refuse('UNKNOWN_CHUNK', 'a chunk of no open call')
    const arrays = this.open.get(call).filter((arg) => arg.is === 'ArrayArg').map((arg) => [hex(arg.digest), sizeOf(arg)])
    this.sizes = new Map(arrays.filter(([digest]) => !this.work.blobs.has(digest) && !this.held.has(digest)))
    for (const digest of this.sizes.keys()) {
      this.need.add(digest)
      this.held.add(digest)
    }
    this.called ||= call === this.calls - 1n
  }

  Cancel ({ index }) {
    if (index >= this.work.count) refuse('UNKNOWN_CHUNK', `chunk ${index}`)
  }

  ResultStart ({ index, size }) {
    if (!this.assigned.delete(index)) refuse('UNKNOWN_CHUNK', 'a result that nobody asked for')
    if (size !== this.work.bytes(index)) refuse('OVERSIZED', 'a result of another size')
    this.came.add(index)
    this.result = size
  }

  Results ({ index, count, data }) {
    const chunks = span(index, count)
    if (this.work.rounds !== undefined) refuse('OUT_OF_ORDER', 'rounds are answered one by one')
    if (!chunks.every((one) => this.assigned.has(one))) refuse('UNKNOWN_CHUNK', 'a result that nobody asked for')
    if (BigInt(data.length) !== chunks.reduce((sum, one) => sum + this.work.bytes(one), 0n)) refuse('OVERSIZED', 'results of another size')
    for (const one of chunks) {
      this.assigned.delete(one)
      this.came.add(one)
    }
  }

  ChunkError ({ index }) {
    if (!this.ready) { // what the task would have begun with has not compiled
      if (this.need.size > 0 || this.blob !== null) refuse('OUT_OF_ORDER', 'compiled before the blobs came')
      if (index !== 0n) refuse('UNKNOWN_CHUNK', 'an error that nobody asked for')
      this.failed = true
      return
    }
    if (!this.assigned.delete(index)) refuse('UNKNOWN_CHUNK', 'an error that nobody asked for')
  }

  GetState ({ state }) {
    if (this.work.rounds === undefined || !this.came.has((state - 1n) / this.work.rounds)) refuse('UNKNOWN_CHUNK', 'a state that did not come')
    if (++this.asked > 8 * this.came.size) refuse('OVERSIZED', 'too many states')
    this.questions.push(state)
  }

  StateStart ({ state, arrays }) {
    this.StateGone({ state })
    if (arrays.length !== this.work.arrays.length) refuse('MALFORMED', 'as many digests as the state has arrays')
    this.state = this.work.arrays.reduce((a, b) => a + b)
  }

  StateGone ({ state }) {
    if (this.questions.shift() !== state) refuse('UNKNOWN_CHUNK', 'an answer to another question')
  }

  Notice () {}
  Refused () {}
  Closed () {}
}

const span = (index, count = 1n) => Array.from({ length: Number(count) }, (_, at) => index + BigInt(at))
const alike = (one, other) => one.is === other.is && one.dtype === other.dtype && String(one.shape) === String(other.shape)
const PROVIDER = new Set(['Results', 'Opened', 'Ready', 'Refused', 'ResultStart', 'ChunkError', 'Notice', 'Closed', 'StateStart', 'StateGone', 'ResultData', 'StateData'])
