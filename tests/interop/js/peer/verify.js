// Verifying what is signed, check by check as the specifications list them.
import { Fault, encode, equal, hex } from './cbor.js'
import { openEnvelope, sha256, unbase58 } from './envelope.js'
import { checkBinding } from './evm.js'
import { rootFrom } from './merkle.js'
import { BatchedReceipt, BidPayload, CapabilityAd, decodeRecord, encodeRecord, OrderPayload, ReceiptPayload, ReceiptsPayload, RefusalPayload, Terms } from './messages.js'

const MAX_CLOCK_SKEW_MS = 120000n
const fail = (code, what) => { throw new Fault(code, what) }
const same = (type, one, other) => equal(encodeRecord(type, one), encodeRecord(type, other))

export function verifyAd (bytes, { network, nowMs }) {
  if (bytes.length > 8192) fail('OVERSIZED', 'an ad above 8 KiB')
  const { signer, payload } = openEnvelope(bytes, { kind: 'ad', network })
  const ad = decodeRecord(CapabilityAd, payload)
  if (ad.peer_id !== signer) fail('WRONG_PEER', 'an ad in the name of another')
  if (ad.issued_ms > nowMs + MAX_CLOCK_SKEW_MS || ad.expires_ms <= nowMs) fail('EXPIRED', 'an ad that is over, or from the future')
  checkBinding(ad.binding, network, signer, nowMs)
  return ad
}

export function verifyOrder (bytes, { network, nowMs, requester, provider }) {
  const { payload, digest } = openEnvelope(bytes, { kind: 'order', network, signer: requester, aad: unbase58(provider) })
  const order = decodeRecord(OrderPayload, payload)
  if (order.created_ms > nowMs + MAX_CLOCK_SKEW_MS || order.expires_ms <= nowMs) fail('EXPIRED', 'an order that is over, or from the future')
  checkBinding(order.payer, network, requester, nowMs)
  return { order, digest }
}

const answerOf = (kind, type) => (bytes, { network, requester, provider }) => {
  const { payload, digest } = openEnvelope(bytes, { kind, network, signer: provider, aad: unbase58(requester) })
  return { answer: decodeRecord(type, payload), digest }
}
export const verifyBid = answerOf('bid', BidPayload)
export const verifyRefusal = answerOf('refusal', RefusalPayload)

export function bidAnswersOrder (bid, order, orderDigest, nowMs) {
  if (!equal(bid.order_digest, orderDigest)) fail('REPLAYED', 'a bid for another order')
  if (bid.price_pusd > order.max_price_pusd) fail('MALFORMED', 'a bid above the price of the order')
  if (bid.valid_until_ms <= nowMs) fail('EXPIRED', 'a bid that has lapsed')
}

export function verifyTerms (bytes, { network, requester }) {
  const { signer, payload } = openEnvelope(bytes, { kind: 'terms', network })
  const terms = decodeRecord(Terms, payload)
  if (terms.requester !== signer || (requester !== undefined && signer !== requester)) fail('WRONG_PEER', 'terms of somebody else')
  return terms
}

// Every field as the table of Terms says where it is from.
const FROM_ORDER = ['deadline_ms', 'work', 'standing', 'chain', 'payer', 'ceiling_uusd', 'check', 'arbiters', 'language', 'fp', 'group_id']
const FROM_BID = ['payee', 'price_pusd', 'credit_window', 'max_window', 'chunk_timeout_ms', 'timeout_payer', 'slots']

export function termsFollowBid (terms, order, orderDigest, bid, bidDigest) {
  const wanted = { ...terms, order_digest: orderDigest, bid_digest: bidDigest }
  for (const [names, source] of [[FROM_ORDER, order], [FROM_BID, bid]]) {
    for (const name of names) {
      if (source[name] === undefined) delete wanted[name]
      else wanted[name] = source[name]
    }
  }
  if (!same(Terms, wanted, terms)) fail('MALFORMED', 'terms that are not what was ordered and bid')
}

export function verifyAgreement (bytes, { network }) {
  const outer = openEnvelope(bytes, { kind: 'agreement', network })
  const inner = openEnvelope(outer.payload, { kind: 'terms', network })
  const terms = decodeRecord(Terms, inner.payload)
  if (terms.provider !== outer.signer || terms.requester !== inner.signer) fail('WRONG_PEER', 'signed by others than it names')
  return { terms, task: outer.digest }
}

// What a receipt says that shares its signature with others.
function batched (bytes, { network, task, provider }) {
  const { receipt, proof, envelope } = decodeRecord(BatchedReceipt, bytes)
  const signed = decodeRecord(ReceiptsPayload, openEnvelope(envelope, { kind: 'receipts', network, signer: provider }).payload)
  if (!equal(signed.task, task)) fail('REPLAYED', 'receipts for another task')
  if (signed.leaves !== proof.leaves || !equal(rootFrom(receipt, proof), signed.root)) fail('BAD_DIGEST', 'not under what is signed')
  return receipt
}

export function verifyReceipt (bytes, { network, task, index, provider }) {
  const receipt = decodeRecord(ReceiptPayload, bytes[0] === 0xa3 ? batched(bytes, { network, task, provider }) : openEnvelope(bytes, { kind: 'receipt', network, signer: provider }).payload)
  if (!equal(receipt.task, task) || receipt.index !== index) fail('REPLAYED', 'a receipt for something else')
  return receipt
}

export { encode, hex, sha256 }
