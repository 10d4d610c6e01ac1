// A node of the market in JavaScript: it reads others' ads, and then sells a core. Commands and events are lines of JSON,
// as in ../streams.js. Started with one argument, JSON: {"network": "local", "journal": "path of its journal"}.
import { randomBytes } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { keccak_256 as keccak } from '@noble/hashes/sha3.js'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { PATIENCE_MS, patient, Reader, runCommands, say, sendAll } from '../streams.js'
import { ascii, hex } from './cbor.js'
import { Dialogues } from './dialogues.js'
import { Signer } from './envelope.js'
import { Account } from './evm.js'
import { Dialogue, frame, onlyFrame } from './frames.js'
import { adsMessages } from './messages.js'
import { Provider } from './provider.js'
import { answerAll, ask } from './requests.js'
import { verifyAd } from './verify.js'

const ADS = '/p2pcompute/ads/2'
const NEGOTIATION = '/p2pcompute/negotiation/5'
const { network, journal } = JSON.parse(process.argv[2])
const seed = new Uint8Array(randomBytes(32))
const signer = new Signer(seed)
const account = new Account(new Uint8Array(randomBytes(32)))
const node = await createLibp2p({
  privateKey: await generateKeyPairFromSeed('Ed25519', seed),
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionManager: patient,
  connectionMonitor: { enabled: false },
  services: { identify: identify({ timeout: PATIENCE_MS }), ping: ping({ timeout: PATIENCE_MS }) }
})
const addresses = () => node.getMultiaddrs().map(String)
let provider = null

// What the hub says of a channel: words of (deposit, claimed, close_at).
const depositOn = (rpc, hub) => async (channel) => {
  const data = '0x' + hex(keccak(ascii('channel(bytes32)')).subarray(0, 4)) + hex(channel)
  const answer = await fetch(rpc, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'eth_call', params: [{ to: '0x' + hex(hub), data }, 'latest'] })
  })
  const { result } = await answer.json()
  const word = (number) => BigInt('0x' + result.slice(2 + 64 * number, 66 + 64 * number))
  return { deposit: word(0), closeAt: word(2) }
}

async function serveStreams (id, handler) {
  await node.handle(id, async (stream, connection) => {
    try {
      await handler(stream, new Reader(stream), connection.remotePeer.toString())
      await stream.close()
    } catch (error) {
      // one that broke the protocol, or went away
      stream.abort(error)
      say({ event: 'broken', protocol: id, error: String(error.stack) })
    }
  })
}

say({ event: 'ready', peer: signer.peerId, addresses: addresses(), payee: hex(account.address) })
const serve = (id, handler) => serveStreams(id, (stream, reader, requester) => handler(new Dialogue(id, stream, reader, 'provider', sendAll), requester))

await runCommands({
  // The ads that a peer holds, verified; its chain and language are what we sell in from then on.
  async read_ads ({ address, rpc }) {
    const connection = await node.dial(multiaddr(address))
    const stream = await connection.newStream(ADS)
    const query = frame(adsMessages.encode('AdQuery', { limit: 16n }))
    const { name, value } = onlyFrame(ADS, await ask(stream, new Reader(stream), sendAll, query, 60000))
    if (name !== 'AdBatch') throw new Error(`${name}: ${value.detail}`)
    const ads = value.ads.map((bytes) => verifyAd(bytes, { network, nowMs: BigInt(Date.now()) }))
    const own = ads.find((ad) => ad.peer_id === connection.remotePeer.toString())
    if (own === undefined) throw new Error('it has no ad of its own')
    provider = new Provider({ signer, account, network, chain: own.chain, language: own.language, journal, deposit: depositOn(rpc, own.chain.hub), say })
    await serveStreams(ADS, (stream, reader) => answerAll(stream, reader, sendAll, (body) => provider.answerAds(body, addresses())))
    const negotiations = new Dialogues(NEGOTIATION, (dialogue, requester) => provider.serveNegotiation(dialogue, requester))
    await serveStreams(NEGOTIATION, (stream, reader, requester) => answerAll(stream, reader, sendAll, (body) => negotiations.answer(body, requester)))
    await serve('/p2pcompute/task/3', (dialogue, requester) => provider.serveTask(dialogue, requester))
    await serve('/p2pcompute/channel/2', (dialogue, requester) => provider.serveChannel(dialogue, requester))
    return {
      ads: ads.map((ad) => ({
        peer_id: ad.peer_id,
        price_pusd: Number(ad.options[0].price_pusd),
        chain_id: Number(ad.chain.chain_id),
        hub: hex(ad.chain.hub),
        addresses: ad.addresses
      }))
    }
  },
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address))
    return { peer: connection.remotePeer.toString() }
  }
})
provider?.close()
await node.stop()
process.exit(0)
