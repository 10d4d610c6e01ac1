// Holds this peer against protocols/*/vectors.json: `node vectors.mjs` prints a line of JSON for each protocol, with
// what failed. Nothing failed where `failed` is empty.
import { readFileSync } from 'node:fs'
import { Fault, equal, hex, unhex } from './cbor.js'
import { openEnvelope } from './envelope.js'
import { channelId, checkBinding, closeDigest, recover, voucherDigest } from './evm.js'
import { Frames, PROTOCOLS as DIALOGUES, States } from './frames.js'
import * as m from './messages.js'
import { ChannelRules, TaskRules } from './rules.js'
import * as v from './verify.js'

const PROTOCOLS = ['envelope', 'ads', 'negotiation', 'task', 'channel']
const MESSAGES = { ads: m.adsMessages, negotiation: m.negotiationMessages, task: m.taskMessages, channel: m.channelMessages }

// As vectors.json has values: bytes in hex, maps as pairs, integers as numbers.
function plain (value) {
  if (typeof value === 'bigint') return value.toString()
  if (value instanceof Uint8Array) return hex(value)
  if (value instanceof Map) return [...value].map(([key, inner]) => [key.toString(), plain(inner)])
  if (Array.isArray(value)) return value.map(plain)
  if (value !== null && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]))
  return value
}

const sorted = (value) => JSON.stringify(value, (_, inner) => (
  inner !== null && typeof inner === 'object' && !Array.isArray(inner) ? Object.fromEntries(Object.entries(inner).sort()) : inner
))

// Integers of JSON keep all their digits: they become text before it is parsed.
const parseJson = (text) => JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|\d+/g, (token) => (token.startsWith('"') ? token : `"${token}"`)))

const bytesOf = (vector) => unhex(vector.hex + '00'.repeat(Number(vector.zeros ?? 0)) + (vector.tail ?? ''))
const again = (type, value, payload) => {
  if (!equal(m.encodeRecord(type, value), payload)) throw new Error('it encodes to other bytes')
}
function play (file, protocol, vector) {
  const bytes = bytesOf(vector)
  const nowMs = BigInt(file.now_ms)
  const context = vector.context ?? {}
  const requester = file.keys.ed25519.requester.peer_id
  const provider = file.keys.ed25519.provider.peer_id
  const world = { network: file.network, nowMs, requester, provider }
  const orderIn = () => v.verifyOrder(unhex(context.order), world)
  const chain = () => ({ chain_id: BigInt(context.chain_id), hub: unhex(context.hub) })
  const channel = () => channelId(unhex(context.payer), unhex(context.payee), unhex(context.signer))
  switch (vector.op) {
    case 'envelope': {
      const opened = openEnvelope(bytes, {
        kind: context.kind, network: context.network ?? file.network, signer: context.signer ?? null, aad: unhex(context.external_aad ?? '')
      })
      return { value: opened }
    }
    case 'message': {
      const { name, value } = MESSAGES[protocol].decode(bytes)
      if (vector.type !== undefined && name !== vector.type) throw new Error(`it is ${name}`)
      if (!equal(MESSAGES[protocol].encode(name, value), bytes)) throw new Error('it encodes to other bytes')
      return { value }
    }
    case 'ad': return { value: v.verifyAd(bytes, world), type: m.CapabilityAd }
    case 'order': return { value: v.verifyOrder(bytes, world).order, type: m.OrderPayload }
    case 'bid': return { value: v.verifyBid(bytes, world).answer, type: m.BidPayload }
    case 'refusal': return { value: v.verifyRefusal(bytes, world).answer, type: m.RefusalPayload }
    case 'terms': return { value: v.verifyTerms(bytes, world), type: m.Terms }
    case 'agreement': {
      const { terms, task } = v.verifyAgreement(bytes, world)
      if (vector.task_id !== undefined && hex(task) !== vector.task_id) throw new Error('another task ID')
      return { value: terms }
    }
    case 'receipt': return {
      value: v.verifyReceipt(bytes, { network: file.network, task: unhex(context.task), index: BigInt(context.index), provider: context.provider }),
      type: m.ReceiptPayload
    }
    case 'bid-answers-order': {
      const { order, digest } = orderIn()
      const { answer } = v.verifyBid(bytes, world)
      v.bidAnswersOrder(answer, order, digest, nowMs)
      return { value: answer, type: m.BidPayload }
    }
    case 'terms-follow-bid': {
      const { order, digest } = orderIn()
      const bid = v.verifyBid(unhex(context.bid), world)
      const terms = v.verifyTerms(bytes, world)
      v.termsFollowBid(terms, order, digest, bid.answer, bid.digest)
      return { value: terms, type: m.Terms }
    }
    case 'binding': {
      const binding = checkBinding(m.decodeRecord(m.SignerBinding, bytes), file.network, context.peer_id, nowMs)
      again(m.SignerBinding, binding, bytes)
      return { value: binding }
    }
    case 'voucher': {
      const digest = voucherDigest(chain(), channel(), BigInt(context.amount_uusd), unhex(context.memo))
      const signer = recover(digest, bytes)
      if (signer === null || hex(signer) !== context.signer) throw new Fault('BAD_VOUCHER', 'not of its signer')
      return { value: { signer, channel: channel(), digest } }
    }
    case 'consent': {
      const [epoch, deadline] = [BigInt(context.epoch), BigInt(context.deadline_s)]
      if (epoch > 16777214n || deadline >= 1n << 40n) throw new Fault('OVERSIZED', 'no such epoch or deadline')
      const digest = closeDigest(chain(), channel(), epoch, BigInt(context.amount_uusd), deadline)
      const closer = recover(digest, bytes)
      if (closer === null || hex(closer) !== context.payee) throw new Fault('BAD_SIGNATURE', 'not of the payee')
      return { value: { closer, channel: channel(), digest } }
    }
    default: throw new Error(`there is no op ${vector.op}`)
  }
}

// What of the payload is not in the names: it must encode to the same bytes.
function encodesAgain (bytes, { value, type }) {
  if (type === undefined) return
  const payload = m.encodeRecord(type, value)
  if (!Buffer.from(bytes).includes(Buffer.from(payload))) throw new Error('its payload encodes to other bytes')
}

// What both sides know of the work, from a transcript's `setup`.
function workOf (setup) {
  const count = BigInt(setup.chunks)
  return {
    count,
    bytes: (index) => BigInt(index === count - 1n ? setup.last_chunk_bytes : setup.chunk_bytes),
    blobs: new Map(Object.entries(setup.blobs).map(([digest, size]) => [digest, BigInt(size)])),
    ...(setup.chunk_rounds && { rounds: BigInt(setup.chunk_rounds), arrays: setup.state_arrays.map(BigInt) })
  }
}

// The events of a transcript, or its last code, where the bytes of each step come in pieces of `size`.
function recite (protocol, transcript, size) {
  const id = Object.keys(DIALOGUES).find((one) => one.split('/')[2] === protocol)
  const states = new States(id)
  const rules = protocol === 'channel' ? new ChannelRules() : protocol === 'task' ? new TaskRules(workOf(transcript.setup)) : { see () {} }
  const frames = { requester: new Frames(DIALOGUES[id].max), provider: new Frames(DIALOGUES[id].max) }
  return transcript.steps.map((step) => {
    const bytes = bytesOf(step)
    let said = null
    try {
      for (let at = 0; at < bytes.length; at += size) {
        if (said !== null) throw new Error('bytes follow the frame')
        frames[step.from].push(bytes.subarray(at, at + size))
        const payload = frames[step.from].next()
        if (payload === null) continue
        said = DIALOGUES[id].messages.decode(payload)
        states.move(step.from, said.name)
        rules.see(said.name, said.value)
      }
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      return error.code
    }
    return said?.name ?? null
  })
}

const folder = new URL(process.argv[2] ?? '../../../../protocols/', import.meta.url)
for (const protocol of PROTOCOLS) {
  const file = parseJson(readFileSync(new URL(`${protocol}/vectors.json`, folder), 'utf8'))
  const failed = []
  const attempt = (vector, todo) => {
    try {
      todo()
    } catch (error) {
      failed.push(`${vector.op}: ${vector.name}: ${error.message}`)
    }
  }
  for (const vector of file.accept) {
    attempt(vector, () => {
      const played = play(file, protocol, vector)
      const [found, wanted] = [sorted(plain(played.value)), sorted(vector.expect)]
      if (vector.expect !== undefined && found !== wanted) throw new Error(`${found} is not ${wanted}`)
      encodesAgain(bytesOf(vector), played)
    })
  }
  for (const vector of file.reject) {
    attempt(vector, () => {
      let code = null
      try {
        play(file, protocol, vector)
      } catch (error) {
        if (!(error instanceof Fault)) throw error
        code = error.code
      }
      if (code !== vector.code) throw new Error(`${code}, not ${vector.code}`)
    })
  }
  const transcripts = (file.transcripts ?? []).filter(({ setup }) => setup?.split === undefined)
  for (const transcript of transcripts) {
    const wanted = transcript.steps.map((step) => step.event ?? step.code).join()
    for (const size of [1, 7, Infinity]) {
      attempt({ op: 'transcript', name: transcript.name }, () => {
        const found = recite(protocol, transcript, size).join()
        if (found !== wanted) throw new Error(`${found} is not ${wanted}, in pieces of ${size}`)
      })
    }
  }
  console.log(JSON.stringify({ protocol, accepted: file.accept.length, rejected: file.reject.length, transcripts: transcripts.length, failed }))
}
