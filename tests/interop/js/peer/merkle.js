// The root of a tree of RFC 9162, as protocols/merkle/README.md has it.
import { sha256 } from './envelope.js'

export function rootOf (leaves) {
  if (leaves.length === 0) return sha256()
  if (leaves.length === 1) return sha256(Uint8Array.of(0), leaves[0])
  let k = 1
  while (k * 2 < leaves.length) k *= 2
  return sha256(Uint8Array.of(1), rootOf(leaves.slice(0, k)), rootOf(leaves.slice(k)))
}
