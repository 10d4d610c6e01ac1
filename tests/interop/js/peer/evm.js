// What is signed with the account's key: bindings (EIP-191), vouchers and consents (EIP-712).
import { secp256k1 } from '@noble/curves/secp256k1.js'
import { keccak_256 as keccak } from '@noble/hashes/sha3.js'
import { Fault, ascii, concat, equal, hex } from './cbor.js'

const N = secp256k1.Point.Fn.ORDER

export const addressOf = (publicKey) => keccak(publicKey.subarray(1)).subarray(12)

// The account whose key has made the one form of a signature; null where there is none.
export function recover (digest, signature) {
  if (signature.length !== 65) return null
  const [r, s] = [0, 32].map((at) => BigInt('0x' + hex(signature.subarray(at, at + 32))))
  const v = signature[64]
  if (r === 0n || r >= N || s === 0n || s > N / 2n || (v !== 27 && v !== 28)) return null
  try {
    const recovered = concat(Uint8Array.of(v - 27), signature.subarray(0, 64))
    const compressed = secp256k1.recoverPublicKey(recovered, digest, { prehash: false })
    return addressOf(secp256k1.Point.fromBytes(compressed).toBytes(false))
  } catch {
    return null
  }
}

export class Account {
  constructor (privateKey) {
    this.privateKey = privateKey
    this.address = addressOf(secp256k1.getPublicKey(privateKey, false))
  }

  sign (digest) {
    const signature = secp256k1.sign(digest, this.privateKey, { prehash: false, lowS: true, format: 'recovered' })
    return concat(signature.subarray(1), Uint8Array.of(27 + signature[0]))
  }

  // A SignerBinding of this account for a node, as owner and signer in one.
  bind (network, peerId, sequence, expiresMs) {
    const binding = { peer_id: peerId, owner: this.address, signer: this.address, sequence, expires_ms: expiresMs }
    return { ...binding, signature: this.sign(bindingDigest(network, binding)) }
  }
}

function bindingDigest (network, binding) {
  const text = ascii([
    'p2pcompute signer binding',
    `network: ${network}`,
    `peer: ${binding.peer_id}`,
    `owner: 0x${hex(binding.owner)}`,
    `signer: 0x${hex(binding.signer)}`,
    `sequence: ${binding.sequence}`,
    `expires_ms: ${binding.expires_ms}`,
    ''
  ].join('\n'))
  return keccak(concat(ascii(`\x19Ethereum Signed Message:\n${text.length}`), text))
}

export function checkBinding (binding, network, peerId, nowMs) {
  if (binding.peer_id !== peerId) throw new Fault('WRONG_PEER', 'the binding of somebody else')
  if (binding.expires_ms <= nowMs) throw new Fault('EXPIRED', 'the binding')
  const signer = recover(bindingDigest(network, binding), binding.signature)
  if (signer === null || !equal(signer, binding.signer)) throw new Fault('BAD_SIGNATURE', 'the binding')
  return binding
}

const word = (value) => {
  const bytes = typeof value === 'bigint' ? Buffer.from(value.toString(16).padStart(64, '0'), 'hex') : value
  return concat(new Uint8Array(32 - bytes.length), bytes)
}
const typed = (type) => keccak(ascii(type))

export const channelId = (payer, payee, signer) => keccak(concat(word(payer), word(payee), word(signer)))

function digestOf (chain, ...struct) {
  const domain = keccak(concat(
    typed('EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)'),
    typed('p2pcompute hub'), typed('1'), word(chain.chain_id), word(chain.hub)
  ))
  return keccak(concat(Uint8Array.of(0x19, 0x01), domain, keccak(concat(...struct))))
}

export const voucherDigest = (chain, channel, amount, memo) => digestOf(
  chain, typed('Voucher(bytes32 channel,uint96 amount,bytes32 memo)'), channel, word(amount), memo
)
export const closeDigest = (chain, channel, epoch, amount, deadline) => digestOf(
  chain, typed('Close(bytes32 channel,uint24 epoch,uint96 amount,uint40 deadline)'), channel, word(epoch), word(amount), word(deadline)
)
