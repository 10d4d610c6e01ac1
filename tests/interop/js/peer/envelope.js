// Signed messages: COSE_Sign1 in the one form that protocols/envelope/README.md allows.
import { createHash } from 'node:crypto'
import { ed25519 } from '@noble/curves/ed25519.js'
import { Fault, ascii, concat, decode, encode, equal, head, textOf } from './cbor.js'
import { base58, makePeerId, peerIdOf, unbase58 } from './peerid.js'

const EMPTY = new Uint8Array(0)
const TYP = /^application\/p2pcompute\.([A-Za-z0-9-]{1,64})\+cbor$/
const NETWORK = /^[A-Za-z0-9-]{1,64}$/
const L = ed25519.Point.Fn.ORDER

export const sha256 = (...parts) => new Uint8Array(parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest())

const protectedHeader = (kid, typ, network) => concat(
  Uint8Array.of(0xa4, 0x01, 0x27, 0x04), encode(kid), Uint8Array.of(0x10), encode(typ), Uint8Array.of(0x3a, 0, 1, 0, 0), encode(network)
)
const toSign = (header, aad, payload) => encode(['Signature1', header, aad, payload])

// The equation without the cofactor, on canonical bytes, with no key and no R of small order.
function verifies (publicKey, signed, signature) {
  const little = (bytes) => BigInt('0x' + Buffer.from(bytes).reverse().toString('hex'))
  const s = little(signature.subarray(32))
  if (s >= L) return false
  let A, R
  try {
    A = ed25519.Point.fromBytes(publicKey, false)
    R = ed25519.Point.fromBytes(signature.subarray(0, 32), false)
  } catch {
    return false
  }
  if (A.isSmallOrder() || R.isSmallOrder() || !equal(A.toBytes(), publicKey)) return false
  const hash = createHash('sha512').update(signature.subarray(0, 32)).update(publicKey).update(signed).digest()
  const k = little(hash) % L
  const sB = s === 0n ? ed25519.Point.ZERO : ed25519.Point.BASE.multiply(s)
  const kA = k === 0n ? ed25519.Point.ZERO : A.multiplyUnsafe(k)
  return equal(sB.subtract(kA).toBytes(), signature.subarray(0, 32))
}

export class Signer {
  constructor (seed) {
    this.seed = seed
    this.binary = makePeerId(ed25519.getPublicKey(seed))
    this.peerId = base58(this.binary)
  }

  seal (kind, network, payload, aad = EMPTY) {
    const header = protectedHeader(this.binary, `application/p2pcompute.${kind}+cbor`, network)
    const signature = ed25519.sign(toSign(header, aad, payload), this.seed)
    const envelope = concat(Uint8Array.of(0xd2), encode([header, new Map(), payload, signature]))
    if (envelope.length > 57344) throw new Fault('OVERSIZED', 'an envelope above the bound')
    return envelope
  }
}

// The four values of a protected header; that it is their one form is compared afterwards.
function readHeader (bytes) {
  if (bytes.length > 256) throw new Fault('OVERSIZED', 'a protected header above 256 bytes')
  const malformed = (what) => { throw new Fault('MALFORMED', what) }
  let at = 0
  const expect = (...wanted) => {
    if (!wanted.every((byte, i) => bytes[at + i] === byte)) malformed('not the four headers in their order')
    at += wanted.length
  }
  const string = (major) => {
    const first = bytes[at] ?? malformed('cut short')
    if (first >> 5 !== major) malformed('a header of another type')
    const info = first & 31
    const long = info === 24 ? 1 : info === 25 ? 2 : 0
    if (info > 25) malformed('a header that is too long')
    let size = long === 0 ? info : 0
    for (let i = 1; i <= long; i++) size = size * 256 + (bytes[at + i] ?? malformed('cut short'))
    at += 1 + long + size
    if (at > bytes.length) malformed('cut short')
    return bytes.subarray(at - size, at)
  }
  // one item that stands for alg, to tell another algorithm from another key
  expect(0xa4, 0x01)
  const alg = bytes[at]
  if (alg === 0x27 || alg < 0x18 || (alg >= 0x20 && alg < 0x38) || alg === 0xf4 || alg === 0xf5) at += 1
  else if (alg === 0x18 || alg === 0x38) at += 2
  else if (alg === 0x19 || alg === 0x39) at += 3
  else malformed('alg')
  expect(0x04)
  const kid = string(2)
  expect(0x10)
  const typ = textOf(string(3))
  expect(0x3a, 0, 1, 0, 0)
  const network = textOf(string(3))
  if (at !== bytes.length) malformed('something follows the headers')
  if (alg === 0x38 && bytes[3] === 7) malformed('alg is not in its shortest form')
  if (alg !== 0x27) throw new Fault('UNSUPPORTED', 'another algorithm than EdDSA')
  return { kid, typ, network }
}

// { signer, payload, digest } of an envelope that verifies.
export function openEnvelope (bytes, { kind, network, signer = null, aad = EMPTY }) {
  const malformed = (what) => { throw new Fault('MALFORMED', what) }
  if (bytes.length > 57344) throw new Fault('OVERSIZED', 'an envelope above the bound')
  if (bytes[0] !== 0xd2) malformed('not tag 18')
  const parts = decode(bytes.subarray(1))
  if (!Array.isArray(parts) || parts.length !== 4) malformed('not four parts')
  const [header, unprotected, payload, signature] = parts
  if (![header, payload, signature].every((part) => part instanceof Uint8Array)) malformed('a part of another type')
  if (!(unprotected instanceof Map) || unprotected.size !== 0) malformed('an unprotected header')
  const found = readHeader(header)
  const typ = TYP.exec(found.typ) ?? malformed('typ')
  if (!NETWORK.test(found.network)) malformed('network')
  if (typ[1] !== kind) throw new Fault('UNSUPPORTED', `a ${typ[1]}, not a ${kind}`)
  if (found.network !== network) throw new Fault('WRONG_NETWORK', found.network)
  const publicKey = peerIdOf(found.kid)
  const who = base58(found.kid)
  if (signer !== null && who !== signer) throw new Fault('WRONG_PEER', `signed by ${who}`)
  if (!equal(header, protectedHeader(found.kid, found.typ, found.network))) malformed('another form of the header')
  if (signature.length !== 64 || !verifies(publicKey, toSign(header, aad, payload), signature)) throw new Fault('BAD_SIGNATURE', 'it does not verify')
  return { signer: who, payload, digest: sha256(bytes) }
}

export { EMPTY, ascii, head, unbase58 }
