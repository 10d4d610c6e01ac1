// Fields, records, unions and messages: from CBOR items to objects with the names of the specification, and back.
//
// A type has `read(item)`, which raises a Fault, and `write(value)`, its inverse.
import { Fault, decode, encode } from './cbor.js'
import { base58, peerIdOf, unbase58 } from './peerid.js'

export const UINT64_MAX = (1n << 64n) - 1n
export const refuse = (code, message) => { throw new Fault(code, message) }

export const uint = (low = 0n, high = UINT64_MAX) => ({
  read (item) {
    if (typeof item !== 'bigint') refuse('MALFORMED', 'not an integer')
    if (item < BigInt(low) || item > BigInt(high)) refuse('OVERSIZED', `${item} is outside of ${low}..${high}`)
    return item
  },
  write (value) { return this.read(BigInt(value)) }
})

export const bytes = (low, high = low) => ({
  read (item) {
    if (!(item instanceof Uint8Array)) refuse('MALFORMED', 'not a byte string')
    if (item.length < low || item.length > high) refuse('OVERSIZED', `${item.length} bytes, not ${low}..${high}`)
    return item
  },
  write (value) { return this.read(value) }
})

export const text = (low, high) => ({
  read (item) {
    if (typeof item !== 'string') refuse('MALFORMED', 'not text')
    const size = Buffer.byteLength(item)
    if (size < low || size > high) refuse('OVERSIZED', `${size} bytes of text, not ${low}..${high}`)
    return item
  },
  write (value) { return this.read(value) }
})

export const oneOf = (...names) => ({
  read (item) {
    if (typeof item !== 'string') refuse('MALFORMED', 'not text')
    if (!names.includes(item)) refuse('UNSUPPORTED', `${item} is none of ${names}`)
    return item
  },
  write (value) { return this.read(value) }
})

export const bool = {
  read (item) {
    if (typeof item !== 'boolean') refuse('MALFORMED', 'not a bool')
    return item
  },
  write (value) { return this.read(value) }
}

// As text: 12D3KooW...
export const peerId = {
  read (item) {
    if (!(item instanceof Uint8Array)) refuse('MALFORMED', 'not a byte string')
    peerIdOf(item)
    return base58(item)
  },
  write: (value) => unbase58(value)
}

export const array = (low, high, type) => ({
  read (item) {
    if (!Array.isArray(item)) refuse('MALFORMED', 'not an array')
    if (item.length < low || item.length > high) refuse('OVERSIZED', `${item.length} elements, not ${low}..${high}`)
    return item.map((one) => type.read(one))
  },
  write: (value) => value.map((one) => type.write(one))
})

// As a Map.
export const uintMap = (low, high) => ({
  read (item) {
    if (!(item instanceof Map)) refuse('MALFORMED', 'not a map')
    if (item.size < low || item.size > high) refuse('OVERSIZED', `${item.size} pairs, not ${low}..${high}`)
    for (const value of item.values()) if (typeof value !== 'bigint') refuse('MALFORMED', 'not an integer')
    return item
  },
  write (value) { return this.read(value) }
})

// `fields` maps keys to [name, type], or [name, type, 'optional']. `check` sees the record when its fields are read.
export function record (name, fields, { extensible = false, check = () => {} } = {}) {
  const known = new Map(Object.entries(fields).map(([key, field]) => [BigInt(key), field]))
  return {
    name,
    read (item, skip = null) {
      if (!(item instanceof Map)) refuse('MALFORMED', `${name} is not a map`)
      const value = {}
      const extensions = new Map()
      for (const [key, inner] of item) {
        if (key === skip) continue
        const field = known.get(key)
        if (field !== undefined) value[field[0]] = field[1].read(inner)
        else if (extensible && key >= 1000n) extensions.set(key, inner)
        else refuse('MALFORMED', `${name} has no key ${key}`)
      }
      for (const [field, , optional] of known.values()) {
        if (value[field] === undefined && optional !== 'optional') refuse('MALFORMED', `${name} without ${field}`)
      }
      if (extensions.size > 0) Object.defineProperty(value, 'extensions', { value: extensions })
      check(value)
      return value
    },
    write (value) {
      const item = new Map(value.extensions ?? [])
      for (const [key, [field, type]] of known) {
        if (value[field] !== undefined) item.set(key, type.write(value[field]))
      }
      this.read(item)
      return item
    }
  }
}

// Objects of a union carry their variant's name as `is`, which JSON does not show.
export const union = (variants) => ({
  read (item) {
    if (!Array.isArray(item) || item.length !== 2 || typeof item[0] !== 'bigint') refuse('MALFORMED', 'not a union')
    const variant = variants[item[0]] ?? refuse('UNSUPPORTED', `tag ${item[0]}`)
    return Object.defineProperty(variant.read(item[1]), 'is', { value: variant.name })
  },
  write (value) {
    const [tag, variant] = Object.entries(variants).find(([, { name }]) => name === value.is)
    return [BigInt(tag), variant.write(value)]
  }
})

export const message = (type, name, fields, options) => ({ type: BigInt(type), ...record(name, fields, options) })

// All messages of a protocol: bytes of a frame to { name, value }, and back.
export const messages = (...kinds) => ({
  decode (payload) {
    const item = decode(payload)
    if (!(item instanceof Map)) refuse('MALFORMED', 'a message is a map')
    const type = item.get(0n)
    if (typeof type !== 'bigint') refuse('MALFORMED', 'a message without a type')
    const kind = kinds.find((one) => one.type === type) ?? refuse('UNSUPPORTED', `message ${type}`)
    return { name: kind.name, value: kind.read(item, 0n) }
  },
  encode (name, value) {
    const kind = kinds.find((one) => one.name === name)
    return encode(new Map([[0n, kind.type], ...kind.write(value)]))
  }
})

export const decodeRecord = (type, payload) => type.read(decode(payload))
export const encodeRecord = (type, value) => encode(type.write(value))
