// A js-libp2p host that does what the tests say: a command a line on stdin, an answer or an event a line on stdout.
//
// Started with one argument, JSON: {"encrypters": ["noise", "tls", "plaintext"], "muxers": ["yamux", "mplex"], "dht": true, "gossip": true}.
import { createHash } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { mplex } from '@libp2p/mplex'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { plaintext } from '@libp2p/plaintext'
import { tcp } from '@libp2p/tcp'
import { tls } from '@libp2p/tls'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { PATIENCE_MS, patient, Reader, runCommands, say, sendAll } from './streams.js'

const BULK = '/interop/bulk/1'
const ECHO = ['/interop/echo/1', '/interop/echo/2', '/interop/echo/3', '/interop/echo/4']
const HALF = '/interop/half/1' // the one who accepts closes its side first, then counts what comes
const HOLD = '/interop/hold/1' // sends a byte and waits for the end
const RESET = '/interop/reset/1' // the one who accepts resets when it has read a byte
const BLOCK = 65536
const MANY = { maxInboundStreams: 512, maxOutboundStreams: 512 }

// Blocks that both languages make: the n-th is SHA-256 of 0, 1, 2, ... with n in front.
const body = Buffer.concat(Array.from({ length: BLOCK / 32 }, (_, i) => {
  const number = Buffer.alloc(4)
  number.writeUInt32BE(i)
  return createHash('sha256').update(number).digest()
}))

function * blocks (size) {
  for (let n = 0; size > 0; n++) {
    const block = Buffer.from(body)
    block.writeUInt32BE(n)
    yield block.subarray(0, Math.min(size, BLOCK))
    size -= BLOCK
  }
}

async function sendBlocks (stream, size) {
  const digest = createHash('sha256')
  for (const block of blocks(size)) {
    digest.update(block)
    await sendAll(stream, block)
  }
  return digest.digest('hex')
}

function digestOfBlocks (size) {
  const digest = createHash('sha256')
  for (const block of blocks(size)) digest.update(block)
  return digest.digest('hex')
}

// Who accepts: 8 bytes say how many to send; it sends them while it reads to the end, then the digest of what it read.
async function serveBulk (stream) {
  const reader = new Reader(stream)
  const size = Number((await reader.exactly(8)).readBigUInt64BE())
  const sending = sendBlocks(stream, size)
  const digest = createHash('sha256')
  for (let part; (part = await reader.some()) !== null;) digest.update(part)
  await sending
  await sendAll(stream, digest.digest())
  await stream.close()
}

async function askBulk (connection, { size }) {
  const stream = await connection.newStream(BULK)
  const head = Buffer.alloc(8)
  head.writeBigUInt64BE(BigInt(size))
  await sendAll(stream, head)
  const sending = sendBlocks(stream, size).then(async (digest) => {
    await stream.close()
    return digest
  })
  const reader = new Reader(stream)
  const digest = createHash('sha256')
  for (let left = size; left > 0;) {
    const part = await reader.exactly(Math.min(left, BLOCK))
    digest.update(part)
    left -= part.length
  }
  const heard = (await reader.exactly(32)).toString('hex')
  const rest = await reader.rest()
  return {
    arrived: digest.digest('hex') === digestOfBlocks(size),
    delivered: heard === await sending,
    ended: rest.length === 0
  }
}

// All streams are open before the first says a word, and answered before the first is closed.
async function askMany (connection, { count }) {
  const streams = await Promise.all(Array.from({ length: count }, (_, i) => connection.newStream(ECHO[i % ECHO.length], MANY)))
  const readers = streams.map((stream) => new Reader(stream))
  const words = streams.map((_, i) => Buffer.from(`stream number ${i}`))
  await Promise.all(streams.map((stream, i) => sendAll(stream, words[i])))
  const answers = await Promise.all(readers.map((reader, i) => reader.exactly(words[i].length)))
  const right = answers.filter((answer, i) => answer.equals(words[i])).length
  await Promise.all(streams.map((stream) => stream.close()))
  const rests = await Promise.all(readers.map((reader) => reader.rest()))
  return { right, ended: rests.filter((rest) => rest.length === 0).length }
}

async function serveEcho (stream) {
  const reader = new Reader(stream)
  for (let part; (part = await reader.some()) !== null;) await sendAll(stream, part)
  await stream.close()
}

async function serveHalf (stream) {
  await sendAll(stream, Buffer.from('that is all'))
  await stream.close()
  const heard = await new Reader(stream).rest()
  say({ event: 'half', digest: createHash('sha256').update(heard).digest('hex'), size: heard.length })
}

async function askHalf (connection, { size }) {
  const stream = await connection.newStream(HALF)
  const reader = new Reader(stream)
  const heard = (await reader.rest()).toString() // the other side is closed by now, ours is not
  const digest = await sendBlocks(stream, size)
  await stream.close()
  return { heard, digest }
}

async function serveHold (stream) {
  try {
    await sendAll(stream, Buffer.from('!'))
    await new Reader(stream).rest()
    say({ event: 'hold', end: 'closed' })
    await stream.close()
  } catch (error) {
    say({ event: 'hold', end: error.name })
  }
}

async function askHold (connection) {
  const stream = await connection.newStream(HOLD)
  await new Reader(stream).exactly(1)
  stream.abort(new Error('the test says so'))
  return { status: stream.status }
}

async function serveReset (stream) {
  await new Reader(stream).exactly(1)
  stream.abort(new Error('the test says so'))
}

async function askReset (connection) {
  const stream = await connection.newStream(RESET)
  await sendAll(stream, Buffer.from('!'))
  try {
    await new Reader(stream).rest()
  } catch (error) {
    return { error: error.name }
  }
  return { error: null }
}

const options = JSON.parse(process.argv[2] ?? '{}')
const wanted = (names, all) => (names ?? Object.keys(all).slice(0, 1)).map((name) => all[name]())
// Like ours: records prove themselves, and the greatest is the best.
const newest = (_, values) => values.reduce((best, value, i) => Buffer.compare(value, values[best]) > 0 ? i : best, 0)
const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: wanted(options.encrypters, { noise: () => noise(), tls: () => tls(), plaintext: () => plaintext() }),
  streamMuxers: wanted(options.muxers, { yamux: () => yamux(), mplex: () => mplex() }),
  connectionManager: patient,
  connectionMonitor: { enabled: false },
  services: {
    identify: identify({ timeout: PATIENCE_MS }),
    ping: ping({ timeout: PATIENCE_MS }),
    ...(options.dht && {
      dht: kadDHT({
        protocol: '/ipfs/kad/1.0.0',
        clientMode: false,
        peerInfoMapper: passthroughMapper,
        validators: { p2pcompute: async (_, value) => { if (!Buffer.from(value).toString().startsWith('ok')) throw new Error('not ours') } },
        selectors: { p2pcompute: newest }
      })
    }),
    ...(options.gossip && { gossip: gossipsub({ globalSignaturePolicy: 'StrictSign', allowPublishToZeroTopicPeers: true }) })
  }
})

const serve = (protocol, handler) => node.handle(protocol, (stream) => handler(stream).catch((error) => say({ event: 'failed', protocol, error: String(error) })), MANY)
await serve(BULK, serveBulk)
for (const protocol of ECHO) await serve(protocol, serveEcho)
await serve(HALF, serveHalf)
await serve(HOLD, serveHold)
await serve(RESET, serveReset)

const connectionTo = (peer) => {
  const [connection] = node.getConnections(peerIdFromString(peer))
  if (connection === undefined) throw new Error(`not connected to ${peer}`)
  return connection
}

const commands = {
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address))
    return { peer: connection.remotePeer.toString(), encryption: connection.encryption, muxer: connection.multiplexer }
  },
  async ping ({ peer }) { return { ms: await node.services.ping.ping(peerIdFromString(peer)) } },
  // What identify has told of the peer. It runs by itself after the handshake.
  async identified ({ peer }) {
    const id = peerIdFromString(peer)
    for (;;) {
      const known = await node.peerStore.get(id).catch(() => null)
      if (known !== null && known.protocols.length > 0) {
        return {
          protocols: known.protocols,
          addresses: known.addresses.map(({ multiaddr }) => multiaddr.toString()),
          agent: Buffer.from(known.metadata.get('AgentVersion') ?? []).toString()
        }
      }
      await new Promise((resolve) => node.addEventListener('peer:update', resolve, { once: true }))
    }
  },
  bulk: (command) => askBulk(connectionTo(command.peer), command),
  many: (command) => askMany(connectionTo(command.peer), command),
  half: (command) => askHalf(connectionTo(command.peer), command),
  hold: (command) => askHold(connectionTo(command.peer)),
  reset: (command) => askReset(connectionTo(command.peer)),
  async connections () {
    return { connections: node.getConnections().map((c) => ({ peer: c.remotePeer.toString(), encryption: c.encryption, muxer: c.multiplexer })) }
  },
  async hangUp ({ peer }) {
    await node.hangUp(peerIdFromString(peer))
    return {}
  },
  async put ({ key, value }) {
    await node.contentRouting.put(Buffer.from(key), Buffer.from(value))
    return {}
  },
  async get ({ key }) { return { value: Buffer.from(await node.contentRouting.get(Buffer.from(key))).toString() } },
  async subscribe ({ topic }) {
    node.services.gossip.addEventListener('message', ({ detail }) => {
      if (detail.topic === topic) say({ event: 'gossip', type: detail.type, from: detail.from?.toString(), data: Buffer.from(detail.data).toString() })
    })
    node.services.gossip.subscribe(topic)
    return {}
  },
  async subscriber ({ topic, peer }) {
    const there = () => node.services.gossip.getSubscribers(topic).some((id) => id.toString() === peer)
    while (!there()) await new Promise((resolve) => node.services.gossip.addEventListener('subscription-change', resolve, { once: true }))
    return {}
  },
  async publish ({ topic, data }) {
    await node.services.gossip.publish(topic, Buffer.from(data))
    return {}
  },
  async stop () {
    await node.stop()
    return {}
  }
}

say({ event: 'ready', peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
await runCommands(commands)
await node.stop()
process.exit(0)
