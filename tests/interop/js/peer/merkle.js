// The root of a tree of RFC 9162, as protocols/merkle/README.md has it.
import { sha256 } from './envelope.js'

// The root that a leaf has with its path.
export function rootFrom (leaf, { index, leaves, path }) {
  let hash = sha256(Uint8Array.of(0), leaf)
  const rest = [...path]
  for (let at = index, last = leaves - 1n; last > 0n; at /= 2n, last /= 2n) {
    if (at % 2n === 1n) hash = sha256(Uint8Array.of(1), rest.shift(), hash)
    else if (at < last) hash = sha256(Uint8Array.of(1), hash, rest.shift())
  }
  return hash
}

export function rootOf (leaves) {
  if (leaves.length === 0) return sha256()
  if (leaves.length === 1) return sha256(Uint8Array.of(0), leaves[0])
  let k = 1
  while (k * 2 < leaves.length) k *= 2
  return sha256(Uint8Array.of(1), rootOf(leaves.slice(0, k)), rootOf(leaves.slice(k)))
}
