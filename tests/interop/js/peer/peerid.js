// Peer IDs: 00 24 08 01 12 20 and an Ed25519 public key, or base58btc of that.
import { Fault, concat, equal, unhex } from './cbor.js'

const PREFIX = unhex('002408011220')
const DIGITS = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'

export function base58 (bytes) {
  let number = BigInt('0x' + (Buffer.from(bytes).toString('hex') || '0'))
  let text = ''
  for (; number > 0n; number /= 58n) text = DIGITS[Number(number % 58n)] + text
  for (let i = 0; i < bytes.length && bytes[i] === 0; i++) text = '1' + text
  return text
}

export function unbase58 (text) {
  let number = 0n
  for (const digit of text) number = number * 58n + BigInt(DIGITS.indexOf(digit))
  const ones = text.length - text.replace(/^1+/, '').length
  const digits = number === 0n ? '' : number.toString(16)
  return concat(new Uint8Array(ones), unhex(digits.padStart(digits.length + (digits.length & 1), '0')))
}

export const makePeerId = (publicKey) => concat(PREFIX, publicKey)

// The public key of a binary peer ID.
export function peerIdOf (bytes) {
  if (bytes.length !== 38 || !equal(bytes.subarray(0, 6), PREFIX)) throw new Fault('MALFORMED', 'not an Ed25519 peer ID')
  return bytes.subarray(6)
}
