// The kernels that this peer can compute: by their text, in JavaScript's own arithmetic. Strict mode is plain IEEE 754,
// every operation rounded by itself, and Math.fround rounds a binary64 to a binary32. The product of two binary32 is
// exact in binary64, and their sum rounded twice is their sum rounded once, since 53 >= 2 * 24 + 2.
import { Fault } from './cbor.js'

const add = (a, b) => Math.fround(a + b)
const multiply = (a, b) => Math.fround(a * b)

const KNOWN = {
  [`def saxpy(out, a, x, y):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]`]: {
    entry: 'saxpy',
    types: ['OutArg float32', 'ScalarArg float32', 'ArrayArg float32', 'ArrayArg float32'],
    // a load beyond the end of an array gives zero
    row: ([, a, x, y], i) => add(multiply(a, x[i] ?? 0), y[i] ?? 0)
  }
}

const floats = (bytes) => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true))
}

// From work and its blobs to a function that gives the bytes of a chunk.
export function compile (work, blob) {
  const refused = (what) => { throw new Fault('KERNEL_REFUSED', what) }
  const source = new TextDecoder('utf-8', { fatal: true }).decode(blob(work.kernel.digest))
  const kernel = KNOWN[source.trim()] ?? refused(`this peer does not know the kernel:\n${source}`)
  const types = work.args.map((arg) => `${arg.is} ${arg.dtype}`)
  if (work.entry !== kernel.entry || work.launch.dims !== 1n || types.join() !== kernel.types.join()) refused('other arguments than it takes')
  const outs = work.args.filter((arg) => arg.is === 'OutArg')
  if (outs.some((out) => out.shape.length !== 1 || out.reduce !== undefined)) refused('outputs of one axis')
  const threads = work.launch.block[0]
  // a row of 4 bytes for each thread of a block
  if (work.chunk_output_bytes !== work.blocks_per_chunk * threads * 4n) throw new Fault('MALFORMED', 'chunk_output_bytes')
  const args = work.args.map((arg) => {
    if (arg.is === 'ScalarArg') return floats(arg.value)[0]
    return arg.is === 'ArrayArg' ? floats(blob(arg.digest)) : null
  })
  const size = Number(outs[0].shape[0])
  return ({ first, blocks }) => {
    const [start, count] = [Number(first * threads), Number(blocks * threads)]
    const output = new DataView(new ArrayBuffer(4 * count))
    for (let row = 0; row < count; row++) {
      const i = start + row
      // a NaN has one pattern in strict mode
      if (i < size) {
        const value = kernel.row(args, i)
        if (Number.isNaN(value)) output.setUint32(4 * row, 0x7fc00000, true)
        else output.setFloat32(4 * row, value, true)
      }
    }
    return new Uint8Array(output.buffer)
  }
}
