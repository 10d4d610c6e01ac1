// Deterministic CBOR as protocols/README.md narrows it, in one pass that stops at the first byte that is not allowed.
//
// Unsigned integers are BigInt, byte strings Uint8Array, text string, arrays Array, maps Map with BigInt keys.

export class Fault extends Error {
  constructor (code, message) {
    super(`${code}: ${message}`)
    this.name = 'Fault'
    this.code = code
  }
}

const MAX_DEPTH = 10
const MAX_ITEMS = 4096
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

export function concat (...parts) {
  const all = new Uint8Array(parts.reduce((size, part) => size + part.length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

export const equal = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i])
export const hex = (bytes) => Buffer.from(bytes).toString('hex')
export const unhex = (text) => new Uint8Array(Buffer.from(text, 'hex'))
export const ascii = (text) => new TextEncoder().encode(text)

export function textOf (bytes) {
  let text
  try {
    text = utf8.decode(bytes)
  } catch {
    throw new Fault('MALFORMED', 'text is not UTF-8')
  }
  if (CONTROL.test(text)) throw new Fault('MALFORMED', 'a control character in text')
  return text
}

export function head (major, value) {
  const top = major << 5
  const n = BigInt(value)
  if (n < 24n) return Uint8Array.of(top | Number(n))
  for (const [info, size] of [[24, 1], [25, 2], [26, 4], [27, 8]]) {
    if (n < 1n << BigInt(8 * size)) {
      const bytes = new Uint8Array(1 + size)
      bytes[0] = top | info
      for (let i = 0; i < size; i++) bytes[size - i] = Number((n >> BigInt(8 * i)) & 255n)
      return bytes
    }
  }
  throw new Fault('OVERSIZED', `${n} has more than 64 bits`)
}

export function encode (value) {
  if (typeof value === 'bigint') {
    if (value < 0n) throw new Fault('MALFORMED', 'a negative integer')
    return head(0, value)
  }
  if (typeof value === 'boolean') return Uint8Array.of(value ? 0xf5 : 0xf4)
  if (value instanceof Uint8Array) return concat(head(2, value.length), value)
  if (typeof value === 'string') {
    const bytes = ascii(value)
    return concat(head(3, bytes.length), bytes)
  }
  if (Array.isArray(value)) return concat(head(4, value.length), ...value.map(encode))
  if (value instanceof Map) {
    const keys = [...value.keys()].sort((a, b) => (a < b ? -1 : 1))
    return concat(head(5, keys.length), ...keys.flatMap((key) => [encode(key), encode(value.get(key))]))
  }
  throw new TypeError(`${typeof value} is not of the subset`)
}

class Decoder {
  constructor (bytes) {
    this.bytes = bytes
    this.at = 0
    this.items = 0
  }

  need (size) {
    if (this.bytes.length - this.at < size) throw new Fault('MALFORMED', 'cut short')
  }

  head () {
    this.need(1)
    const first = this.bytes[this.at++]
    const info = first & 31
    let value = BigInt(info)
    if (info >= 24) {
      if (info > 27) throw new Fault('MALFORMED', 'an indefinite or reserved length')
      const size = 1 << (info - 24)
      this.need(size)
      value = 0n
      for (let i = 0; i < size; i++) value = (value << 8n) | BigInt(this.bytes[this.at++])
      if (value < (size === 1 ? 24n : 1n << BigInt(4 * size))) throw new Fault('MALFORMED', 'not the shortest form')
    }
    return [first >> 5, value, first]
  }

  take (size) {
    if (size > BigInt(this.bytes.length - this.at)) throw new Fault('MALFORMED', 'cut short')
    this.at += Number(size)
    return this.bytes.subarray(this.at - Number(size), this.at)
  }

  item (depth) {
    if (depth > MAX_DEPTH) throw new Fault('OVERSIZED', 'too deep')
    if (++this.items > MAX_ITEMS) throw new Fault('OVERSIZED', 'too many items')
    if (this.bytes[this.at] === 0xf4 || this.bytes[this.at] === 0xf5) return this.bytes[this.at++] === 0xf5
    const [major, value] = this.head()
    if (major === 0) return value
    if (major === 2) return this.take(value)
    if (major === 3) return textOf(this.take(value))
    if (major === 4) {
      const array = []
      for (let left = value; left > 0n; left--) array.push(this.item(depth + 1))
      return array
    }
    if (major === 5) {
      const map = new Map()
      let last = -1n
      for (let left = value; left > 0n; left--) {
        const key = this.item(depth + 1)
        if (typeof key !== 'bigint' || key <= last) throw new Fault('MALFORMED', 'a key that is no integer, or out of order')
        last = key
        map.set(key, this.item(depth + 1))
      }
      return map
    }
    throw new Fault('MALFORMED', 'not of the subset')
  }
}

export function decode (bytes) {
  const decoder = new Decoder(bytes)
  const value = decoder.item(0)
  if (decoder.at !== bytes.length) throw new Fault('MALFORMED', 'something follows')
  return value
}
