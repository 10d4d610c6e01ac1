// Holds this peer against protocols/*/vectors.json: `node vectors.mjs` prints a line of JSON for each protocol, with
// what failed. Nothing failed where `failed` is empty.
import { readFileSync } from 'node:fs'
import { Fault, equal, hex, unhex } from './cbor.js'
import { openEnvelope } from './envelope.js'
import { channelId, checkBinding, closeDigest, recover, voucherDigest } from './evm.js'
import { Frames, PROTOCOLS as DIALOGUES, States } from './frames.js'
import * as m from './messages.js'
import { requestFrame, Requests } from './requests.js'
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
  const repeated = setup.standing && m.decodeRecord(m.ChunkWork, unhex(setup.standing.work))
  const each = repeated ? (repeated.launch.grid.reduce((a, b) => a * b) + repeated.blocks_per_chunk - 1n) / repeated.blocks_per_chunk : count
  return {
    count,
    ...(repeated && { standing: { each, args: repeated.args.filter((arg) => arg.is !== 'OutArg') } }),
    bytes: (index) => BigInt((index + 1n) % each === 0n ? setup.last_chunk_bytes : setup.chunk_bytes),
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

// A frame of a request stream as vectors.json has it.
function eventOf ({ name, number, value, detail, body }) {
  const fields = {
    Ask: { number, timeout_ms: value, body },
    Cancel: { number },
    Limits: { requests: number, request_bytes: value },
    Reply: { number, body },
    Fault: { number, code: value, detail },
    Drain: { number },
    StreamOver: {}
  }[name]
  return plain({ frame: name, ...Object.fromEntries(Object.entries(fields).map(([key, one]) => [key, typeof one === 'number' ? BigInt(one) : one])) })
}

// A frame by itself: what it says, and that it is written in the same bytes.
function playFrame (vector) {
  const bytes = bytesOf(vector)
  const requests = new Requests(['Ask', 'Cancel'].includes(vector.expect.frame) ? 'provider' : 'requester')
  Object.assign(requests, { open: vector.expect.frame !== 'Limits', last: Number(vector.expect.number ?? 0) })
  if (vector.expect.frame === 'Ask') requests.last -= 1
  else requests.underWay.set(requests.last, 0)
  const [{ name, number, value, body }] = requests.hear(bytes)
  if (!equal(requestFrame(name, number, value, body), bytes)) throw new Error('it is written in other bytes')
  return { value: eventOf({ name, number, value, body, detail: Buffer.from(body).toString() }) }
}

// What a side hears in a transcript of request streams, or its code, where bytes come in pieces of `size`.
function listen (transcript, size) {
  const limits = { requests: Number(transcript.setup.requests), bytes: Number(transcript.setup.request_bytes) }
  const sides = { requester: new Requests('requester', limits), provider: new Requests('provider', limits) }
  const sent = { requester: [], provider: [] }
  return transcript.steps.flatMap((step) => {
    if (step.say !== undefined) {
      const bytes = bytesOf(step)
      sent[step.say === 'requester' ? 'provider' : 'requester'].push(bytes)
      for (let at = 0; step.forged === undefined && at < bytes.length;) {
        const head = new DataView(bytes.buffer, bytes.byteOffset + at, 12)
        const length = head.getUint32(0) % 2 ** 24
        sides[step.say].note({ name: [null, 'Ask', 'Cancel', 'Limits', 'Reply', 'Fault', 'Drain'][head.getUint8(0)], number: head.getUint32(4), size: length })
        at += 12 + length
      }
      return []
    }
    const heard = []
    try {
      for (const bytes of sent[step.hear].splice(0)) {
        for (let at = 0; at < Math.max(bytes.length, 1); at += size) heard.push(...sides[step.hear].hear(bytes.subarray(at, at + size)))
      }
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      return [error.code]
    }
    return [sorted(heard.map(eventOf))]
  })
}

const folder = new URL(process.argv[2] ?? '../../../../protocols/', import.meta.url)
for (const protocol of [...PROTOCOLS, 'request']) {
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
      const played = protocol === 'request' ? playFrame(vector) : play(file, protocol, vector)
      const [found, wanted] = [sorted(plain(played.value)), sorted(vector.expect)]
      if (vector.expect !== undefined && found !== wanted) throw new Error(`${found} is not ${wanted}`)
      encodesAgain(bytesOf(vector), played)
    })
  }
  for (const vector of file.reject ?? []) {
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
    const steps = protocol === 'request' ? transcript.steps.filter((step) => step.hear !== undefined) : transcript.steps
    const wanted = steps.map((step) => step.code ?? step.event ?? sorted(step.events)).join()
    for (const size of [1, 7, Infinity]) {
      attempt({ op: 'transcript', name: transcript.name }, () => {
        const found = (protocol === 'request' ? listen(transcript, size) : recite(protocol, transcript, size)).join()
        if (found !== wanted) throw new Error(`${found} is not ${wanted}, in pieces of ${size}`)
      })
    }
  }
  console.log(JSON.stringify({ protocol, accepted: file.accept.length, rejected: file.reject?.length ?? 0, transcripts: transcripts.length, failed }))
}
