// A provider that sells one core of JavaScript: ads, bids, chunks, receipts, vouchers.
import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs'
import { Fault, equal, hex } from './cbor.js'
import { sha256, unbase58 } from './envelope.js'
import { channelId, checkBinding, recover, voucherDigest } from './evm.js'
import { frame, onlyFrame } from './frames.js'
import { compile } from './kernels.js'
import { rootOf } from './merkle.js'
import { adsMessages, BidPayload, CapabilityAd, ChainTerms, chunksOf, encodeRecord, ReceiptPayload, RefusalPayload } from './messages.js'
import { ChannelRules, TaskRules } from './rules.js'
import { termsFollowBid, verifyAgreement, verifyOrder, verifyTerms } from './verify.js'

const ADS = '/p2pcompute/ads/2'
const CODES = {
  MALFORMED: 1n, OVERSIZED: 2n, BAD_SIGNATURE: 3n, WRONG_NETWORK: 4n, WRONG_PEER: 5n, EXPIRED: 6n, REPLAYED: 7n, OUT_OF_ORDER: 8n, UNSUPPORTED: 9n,
  UNKNOWN_CHUNK: 11n, BAD_DIGEST: 12n, NO_CAPACITY: 13n, PRICE_TOO_LOW: 14n, KERNEL_REFUSED: 15n, CHAIN_MISMATCH: 16n, BAD_VOUCHER: 19n, UNFUNDED: 20n, CANCELLED: 23n, INTERNAL: 27n
}
const codeOf = (error) => CODES[error.code] ?? CODES.INTERNAL
const PIECE = 262144
const ZEROS = new Uint8Array(32)
const now = () => BigInt(Date.now())

export class Provider {
  constructor ({ signer, account, network, chain, language, journal, deposit, say }) {
    Object.assign(this, { signer, account, network, chain, language, deposit, say })
    this.journal = openSync(journal, 'a')
    this.price = 2000n // pico-USD for a microsecond of a reference core
    this.window = 2n
    this.maxWindow = 8n
    this.seen = new Set() // orders
    this.tasks = new Map() // agreements signed, by task ID
    this.channels = new Map() // by channel ID
  }

  // On disk before what it promises leaves.
  store (row) {
    writeSync(this.journal, JSON.stringify(row, (_, value) => (typeof value === 'bigint' ? value.toString() : value instanceof Uint8Array ? hex(value) : value)) + '\n')
    fsyncSync(this.journal)
  }

  close () { closeSync(this.journal) }

  // ads

  ad (addresses) {
    const issued = now()
    const ad = {
      version: 1n,
      peer_id: this.signer.peerId,
      sequence: issued,
      issued_ms: issued,
      expires_ms: issued + 600000n,
      addresses,
      devices: [{ kind: 'cpu', name: 'JavaScript', slots: 1n, memory_bytes: 1n << 30n, score_milli: 1000n, scores: new Map() }],
      resources: new Map([[2n, 1n]]),
      features: [],
      options: [{ work: 1n, fp: 'strict', price_pusd: this.price, max_window: this.maxWindow }],
      language: this.language,
      chain: this.chain,
      binding: this.account.bind(this.network, this.signer.peerId, 1n, issued + 86400000n),
      availability: { idle_only: false, draining: false }
    }
    return this.signer.seal('ad', this.network, encodeRecord(CapabilityAd, ad))
  }

  // The answer to a query: bodies of a request stream.
  answerAds (body, addresses) {
    const { name, value: query } = onlyFrame(ADS, body)
    if (name !== 'AdQuery') throw new Fault('OUT_OF_ORDER', `${name} of the requester`)
    const fits = (query.kind ?? 'cpu') === 'cpu' && (query.fp ?? 'strict') === 'strict' && (query.peer_id ?? this.signer.peerId) === this.signer.peerId
    return frame(adsMessages.encode('AdBatch', { ads: fits ? [this.ad(addresses)] : [], more: false }))
  }

  // negotiation

  consider (order, requester) {
    const refuse = (code, what) => { throw new Fault(code, what) }
    const key = `${requester} ${hex(order.order_id)}`
    if (this.seen.has(key)) refuse('REPLAYED', 'an order that was seen before')
    this.seen.add(key)
    if (!equal(encodeRecord(ChainTerms, order.chain), encodeRecord(ChainTerms, this.chain))) refuse('CHAIN_MISMATCH', 'another chain')
    if (order.standing || order.work?.is !== 'ChunkWork' || order.fp !== 'strict' || !this.language.includes(order.language)) refuse('UNSUPPORTED', 'chunks in strict mode are all that there is')
    const { kinds, features, min_score_milli: score, region } = order.requirement
    if (!kinds.includes('cpu') || features.length > 0 || score > 1000n || region !== undefined || order.arbiters.length > 0) refuse('UNSUPPORTED', 'more than one core of JavaScript')
    if (order.max_price_pusd < this.price) refuse('PRICE_TOO_LOW', `${this.price} pico-USD a unit`)
  }

  async serveNegotiation (dialogue, requester) {
    let dealt = null
    while (true) {
      const said = await dialogue.receive()
      if (said === null) return
      const bytes = said.value.envelope
      const world = { network: this.network, nowMs: now(), requester, provider: this.signer.peerId }
      const aad = unbase58(requester)
      try {
        if (said.name === 'OrderFrame') {
          dealt = null
          const { order, digest } = verifyOrder(bytes, world)
          dealt = { order, digest }
          this.consider(order, requester)
          const bid = {
            order_digest: digest,
            price_pusd: this.price,
            slots: 1n,
            credit_window: this.window,
            max_window: this.maxWindow,
            payee: this.account.address,
            score_milli: 1000n,
            valid_until_ms: now() + 30000n,
            chunk_timeout_ms: 600000n,
            timeout_payer: 'provider'
          }
          const envelope = this.signer.seal('bid', this.network, encodeRecord(BidPayload, bid), aad)
          Object.assign(dealt, { bid, bidDigest: sha256(envelope) })
          await dialogue.send('BidFrame', { envelope })
        } else {
          const terms = verifyTerms(bytes, world)
          if (dealt.bid.valid_until_ms <= world.nowMs) throw new Fault('EXPIRED', 'the bid')
          termsFollowBid(terms, dealt.order, dealt.digest, dealt.bid, dealt.bidDigest)
          const envelope = this.signer.seal('agreement', this.network, bytes)
          const task = hex(sha256(envelope))
          this.store({ agreement: envelope })
          this.tasks.set(task, { receipts: new Map() })
          await dialogue.send('AcceptFrame', { envelope })
          this.say({ event: 'agreed', task, requester })
        }
      } catch (error) {
        if (!(error instanceof Fault)) throw error
        const refusal = { order_digest: dealt?.digest ?? ZEROS, code: codeOf(error), detail: error.message.slice(0, 1000) }
        await dialogue.send('RefusalFrame', { envelope: this.signer.seal('refusal', this.network, encodeRecord(RefusalPayload, refusal), aad) })
        this.say({ event: 'refused', code: error.code, detail: error.message })
      }
    }
  }

  // money: what was receipted on a channel, and the best voucher for it

  channel (payer, signer) {
    const id = channelId(payer, this.account.address, signer)
    const key = hex(id)
    if (!this.channels.has(key)) {
      this.channels.set(key, { id, payer, signer, owedPusd: 0n, unpaid: [], window: this.window, best: null, tree: [], issued: new Map(), reproduced: 0, wake: [] })
    }
    return this.channels.get(key)
  }

  async serveChannel (dialogue, requester) {
    const hello = (await dialogue.receive())?.value
    if (hello === undefined) return
    try {
      if (!equal(encodeRecord(ChainTerms, hello.chain), encodeRecord(ChainTerms, this.chain))) throw new Fault('CHAIN_MISMATCH', 'another chain')
      if (!equal(hello.payee, this.account.address)) throw new Fault('WRONG_PEER', 'another payee')
      checkBinding(hello.payer, this.network, requester, now())
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      await dialogue.send('VoucherRefusal', { code: codeOf(error), detail: error.message, best_uusd: 0n })
      return
    }
    const channel = this.channel(hello.payer.owner, hello.payer.signer)
    dialogue.rules = new ChannelRules()
    await dialogue.send('ChannelSync', channel.best ?? { amount_uusd: 0n })
    while (true) {
      const said = await dialogue.receive()
      if (said === null) return
      const best = channel.best?.amount_uusd ?? 0n
      try {
        if (said.name === 'CloseAsk') throw new Fault('UNSUPPORTED', 'this peer does not consent')
        const voucher = said.value
        const signer = recover(voucherDigest(this.chain, channel.id, voucher.amount_uusd, voucher.memo), voucher.signature)
        if (signer === null || !equal(signer, channel.signer)) throw new Fault('BAD_SIGNATURE', 'not of the payer\'s signer')
        if (voucher.amount_uusd <= best) throw new Fault('BAD_VOUCHER', 'no more than the best one')
        const { deposit, closeAt } = await this.deposit(channel.id)
        if (voucher.amount_uusd > deposit || closeAt !== 0n) throw new Fault('UNFUNDED', `the deposit is ${deposit}`)
        this.take(channel, voucher)
        await dialogue.send('VoucherAck', { amount_uusd: voucher.amount_uusd })
      } catch (error) {
        if (!(error instanceof Fault)) throw error
        await dialogue.send('VoucherRefusal', { code: codeOf(error), detail: error.message, best_uusd: best })
      }
    }
  }

  take (channel, voucher) {
    const { amount_uusd: amount, memo, signature, first, receipts = [] } = voucher
    const fresh = receipts.slice(Math.max(0, channel.tree.length - Number(first ?? 0)))
    const leaves = fresh.map(({ task, index }) => channel.issued.get(`${hex(task)} ${index}`))
    const tree = [...channel.tree, ...leaves]
    const reproduced = leaves.every((leaf) => leaf !== undefined) && Number(first ?? 0) <= channel.tree.length && equal(rootOf(tree), memo)
    this.store({ voucher: amount, channel: channel.id, memo, signature })
    if (reproduced) channel.tree = tree
    channel.best = { amount_uusd: amount, memo, signature }
    channel.unpaid = channel.unpaid.filter((owed) => owed > amount)
    if (channel.unpaid.length === 0) channel.window = channel.window * 2n > this.maxWindow ? this.maxWindow : channel.window * 2n
    this.say({ event: 'voucher', channel: hex(channel.id), payer: hex(channel.payer), signer: hex(channel.signer), payee: hex(this.account.address), amount_uusd: Number(amount), memo: hex(memo), signature: hex(signature), reproduced, leaves: channel.tree.length })
    channel.wake.splice(0).forEach((wake) => wake())
  }

  // tasks

  receipt (task, index, fields) {
    const receipt = { task, index, code: 0n, output: ZEROS, fp: 'strict', units: 0n, finished_ms: now(), ...fields }
    const envelope = this.signer.seal('receipt', this.network, encodeRecord(ReceiptPayload, receipt))
    this.store({ receipt: envelope })
    return envelope
  }

  async serveTask (dialogue, requester) {
    const open = (await dialogue.receive())?.value
    if (open === undefined) return
    let terms, task, known, work
    try {
      ({ terms, task } = verifyAgreement(open.agreement, { network: this.network }))
      if (terms.requester !== requester || terms.provider !== this.signer.peerId) throw new Fault('WRONG_PEER', 'an agreement of others')
      known = this.tasks.get(hex(task))
      if (known === undefined || terms.deadline_ms <= now()) throw new Fault('EXPIRED', 'an agreement that is none, or over')
      if (terms.standing) throw new Fault('UNSUPPORTED', 'standing agreements are not served')
      work = chunksOf(terms.work)
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      await dialogue.send('Refused', { code: codeOf(error), detail: error.message.slice(0, 1000) })
      return
    }
    const channel = this.channel(terms.payer.owner, terms.payer.signer)
    dialogue.rules = new TaskRules({ ...work, bytes: (index) => work.chunk(index).bytes })
    await dialogue.send('Opened', { need: [...work.blobs.keys()].map((key) => Buffer.from(key, 'hex')), slots: 1n, window: channel.window })
    const blobs = new Map()
    while (blobs.size < work.blobs.size) {
      const { name, value } = await dialogue.receive() ?? {}
      if (name === 'Finish') {
        await dialogue.send('Closed', { chunks: 0n })
        return
      }
      blobs.set(hex(value.digest), await this.bytesOf(dialogue, Number(value.size)))
    }
    const begun = Date.now()
    let run
    try {
      run = compile(terms.work, (digest) => blobs.get(hex(digest)))
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      await dialogue.send('Refused', { code: codeOf(error), detail: error.message.slice(0, 1000) })
      this.say({ event: 'refused', code: error.code, detail: error.message })
      return
    }
    await dialogue.send('Ready', { compile_ms: BigInt(Date.now() - begun) })
    const waiting = [] // chunks assigned
    const session = { ended: false, wake: () => {} }
    const listening = this.listen(dialogue, waiting, session, channel)
    await this.compute(dialogue, { task, terms, known, work, run, channel, waiting, session })
    await listening
  }

  // The rules see that they are the blob's, all of them and no more.
  async bytesOf (dialogue, size) {
    const bytes = new Uint8Array(size)
    for (let at = 0; at < size;) {
      const { name, value } = await dialogue.receive() ?? {}
      if (name !== 'BlobData') throw new Fault('OUT_OF_ORDER', 'something between the bytes of a blob')
      bytes.set(value.data, at)
      at += value.data.length
    }
    return bytes
  }

  // Takes what the requester says into `waiting`, beside the computing.
  async listen (dialogue, waiting, session, channel) {
    try {
      for (let said; (said = await dialogue.receive()) !== null;) {
        const { name, value } = said
        if (name === 'Finish') break
        if (name === 'Assign') for (let at = 0n; at < (value.count ?? 1n); at++) waiting.push({ index: value.index + at, cancelled: false })
        for (const held of waiting) held.cancelled ||= name === 'Cancel' && held.index === value.index
        session.wake()
      }
    } catch (error) {
      session.error = error
    } finally {
      session.ended = true
      session.wake()
      channel.wake.splice(0).forEach((wake) => wake())
    }
  }

  async compute (dialogue, { task, terms, known, work, run, channel, waiting, session }) {
    let told = channel.window
    for (;;) {
      // the window: so many delivered and not paid, and no more
      while (!session.ended && (waiting.length === 0 || BigInt(channel.unpaid.length) >= channel.window)) {
        await new Promise((resolve) => {
          session.wake = resolve
          channel.wake.push(resolve)
        })
        if (channel.window !== told && !session.ended) {
          told = channel.window
          await dialogue.send('Notice', { kind: 'window', window: told })
        }
      }
      if (session.ended) break
      const { index, cancelled } = waiting[0]
      if (cancelled) {
        waiting.shift()
        await dialogue.send('ChunkError', { index, receipt: this.receipt(task, index, { code: CODES.CANCELLED }) })
        continue
      }
      const chunk = work.chunk(index)
      const output = run(chunk)
      const again = known.receipts.get(index)
      const receipt = again ?? this.receipt(task, index, { output: sha256(output), units: chunk.units })
      if (again === undefined) {
        known.receipts.set(index, receipt)
        channel.issued.set(`${hex(task)} ${index}`, receipt)
        channel.owedPusd += chunk.units * terms.price_pusd
        channel.unpaid.push((channel.owedPusd + 999999n) / 1000000n)
      }
      waiting.shift()
      await dialogue.send('ResultStart', { index, receipt, size: BigInt(output.length) })
      for (let at = 0; at < output.length; at += PIECE) await dialogue.send('ResultData', { data: output.subarray(at, at + PIECE) })
      this.say({ event: 'chunk', index: Number(index), units: Number(chunk.units) })
    }
    if (session.error !== undefined) throw session.error
    if (dialogue.states.state === 'FINISHING') {
      await dialogue.send('Closed', { chunks: BigInt(known.receipts.size) })
      this.say({ event: 'closed', chunks: known.receipts.size })
    }
  }
}
