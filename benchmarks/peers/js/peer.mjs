// js-libp2p: TCP, Noise, Yamux and identify. Driven as the peers in Python are; see ../shared/side.py and wire.py.
//
// node peer.mjs serve wire | drive MULTIADDR wire

if (Promise.withResolvers === undefined) { // Node.js before 22
  Promise.withResolvers = function () {
    let resolve, reject
    const promise = new this((yes, no) => { resolve = yes; reject = no })
    return { promise, resolve, reject }
  }
}
const { createHash } = await import('node:crypto')
const { createInterface } = await import('node:readline')
const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { multiaddr } = await import('@multiformats/multiaddr')

const SINK = '/p2pcompute-benchmark/sink/1'
const ECHO = '/p2pcompute-benchmark/echo/1'
const BLOCK = 1 << 20
const MESSAGE = 200
const REQUEST = new Uint8Array(MESSAGE)
new DataView(REQUEST.buffer).setUint32(0, MESSAGE - 4)

const answer = what => process.stdout.write(JSON.stringify(what) + '\n')

function host (listen) {
  return createLibp2p({
    addresses: { listen },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify() },
    connectionManager: { maxConnections: 1000 },
    connectionMonitor: { enabled: false }
  })
}

// What comes on a stream, in one piece each time; null at its end.
class Reader {
  constructor (stream) {
    this.pieces = stream[Symbol.asyncIterator]()
  }

  async some () {
    const { done, value } = await this.pieces.next()
    if (done) return null
    return value instanceof Uint8Array ? value : value.subarray()
  }

  async exactly (count) {
    let got = await this.needed()
    while (got.length < count) got = Buffer.concat([got, await this.needed()])
    return got
  }

  async needed () {
    const piece = await this.some()
    if (piece === null) throw new Error('the stream ended early')
    return piece
  }
}

async function send (stream, data) {
  if (!stream.send(data)) await stream.onDrain()
}

async function sink (stream) {
  const reader = new Reader(stream)
  let data = await reader.exactly(9)
  const length = Number(Buffer.from(data).readBigUInt64BE(0))
  const hashed = data[8] === 1
  const found = createHash('sha256')
  data = data.subarray(9)
  let got = data.length
  if (hashed) found.update(data)
  while (got < length) {
    const piece = await reader.needed()
    got += piece.length
    if (hashed) found.update(piece)
  }
  const said = Buffer.alloc(8)
  said.writeBigUInt64BE(BigInt(got))
  await send(stream, Buffer.concat([said, found.digest()]))
  await stream.close()
}

async function echo (stream) {
  const reader = new Reader(stream)
  let rest = new Uint8Array(0)
  let piece
  while ((piece = await reader.some()) !== null) {
    let data = rest.length === 0 ? piece : Buffer.concat([rest, piece])
    let replies = 0
    while (data.length >= 4) {
      const end = 4 + new DataView(data.buffer, data.byteOffset).getUint32(0)
      if (end > data.length) break
      replies += 1
      data = data.subarray(end)
    }
    rest = data
    if (replies > 0) await send(stream, requests(replies))
  }
  await stream.close()
}

function requests (count) {
  if (count === 1) return REQUEST
  const made = new Uint8Array(count * MESSAGE)
  for (let number = 0; number < count; number++) made.set(REQUEST, number * MESSAGE)
  return made
}

const noisy = createHash('shake128', { outputLength: BLOCK - 8 }).update('benchmark').digest()
function block (number) {
  const made = Buffer.alloc(BLOCK)
  made.writeBigUInt64BE(BigInt(number))
  noisy.copy(made, 8)
  return made
}

async function repeated (call, seconds, most) {
  const times = []
  const end = performance.now() + seconds * 1000
  while (times.length < most) {
    const began = performance.now()
    await call()
    const now = performance.now()
    times.push(now - began)
    if (now > end) break
  }
  return { times_ms: times, units: times.length }
}

async function drive (address) {
  const node = await host([])
  const connection = await node.dial(multiaddr(address))
  const open = protocol => connection.newStream(protocol)
  const measures = {
    async bulk ({ nbytes, check }) {
      const stream = await open(SINK)
      const plain = new Uint8Array(BLOCK)
      const began = performance.now()
      const head = Buffer.alloc(9)
      head.writeBigUInt64BE(BigInt(nbytes))
      head[8] = check ? 1 : 0
      await send(stream, head)
      const found = createHash('sha256')
      for (let number = 0; number < nbytes / BLOCK; number++) {
        const one = check ? block(number) : plain
        if (check) found.update(one)
        await send(stream, one)
      }
      const said = Buffer.from(await new Reader(stream).exactly(40))
      const spent = (performance.now() - began) / 1000
      await stream.close()
      if (Number(said.readBigUInt64BE(0)) !== nbytes) throw new Error('bytes are missing')
      if (check && !said.subarray(8).equals(found.digest())) throw new Error('other bytes came than were sent')
      return { s: spent, units: nbytes / BLOCK }
    },
    async request ({ seconds, most }) {
      const stream = await open(ECHO)
      const reader = new Reader(stream)
      const ask = async () => {
        await send(stream, REQUEST)
        await reader.exactly(MESSAGE)
      }
      for (let number = 0; number < 20; number++) await ask()
      const found = await repeated(ask, seconds, most)
      await stream.close()
      return found
    },
    async stream ({ seconds, most }) {
      const once = async () => {
        const stream = await open(ECHO)
        await send(stream, REQUEST)
        await new Reader(stream).exactly(MESSAGE)
        await stream.close()
      }
      await once()
      return repeated(once, seconds, most)
    },
    async flight ({ seconds, flight }) {
      const stream = await open(ECHO)
      const reader = new Reader(stream)
      const began = performance.now()
      await send(stream, requests(flight))
      let replied = 0
      let got = 0
      let now = began
      while (now - began < seconds * 1000) {
        got += (await reader.needed()).length
        const replies = Math.floor(got / MESSAGE)
        got %= MESSAGE
        replied += replies
        if (replies > 0) await send(stream, requests(replies))
        now = performance.now()
      }
      await stream.close()
      return { s: (now - began) / 1000, units: replied }
    },
    async connect ({ count }) {
      const times = []
      for (let number = 0; number < count; number++) {
        const fresh = await host([])
        const known = new Promise(resolve => fresh.addEventListener('peer:identify', resolve, { once: true }))
        const began = performance.now()
        await fresh.dial(multiaddr(address))
        await known
        times.push(performance.now() - began)
        await fresh.stop()
      }
      return { times_ms: times, units: count }
    }
  }
  answer({ ready: null })
  for await (const line of createInterface({ input: process.stdin })) {
    const { do: name, ...order } = JSON.parse(line)
    answer(await measures[name](order))
  }
  process.exit(0)
}

async function serve () {
  const node = await host(['/ip4/127.0.0.1/tcp/0'])
  for (const [protocol, handler] of [[SINK, sink], [ECHO, echo]]) {
    await node.handle(protocol, stream => { handler(stream).catch(error => stream.abort(error)) },
      { maxInboundStreams: 1000 })
  }
  answer({ ready: node.getMultiaddrs()[0].toString() })
  process.stdin.on('end', () => process.exit(0)).resume()
}

const [what, address] = process.argv.slice(2)
await (what === 'serve' ? serve() : drive(address))
