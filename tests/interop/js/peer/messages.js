// Every record and message of ads, negotiation, task and channel, as the tables of protocols/*/README.md have them.
import { array, bool, bytes, decodeRecord, encodeRecord, message, messages, oneOf, peerId, record, refuse, text, uint, uintMap, union, UINT64_MAX } from './schema.js'

export { decodeRecord, encodeRecord }

const MAX_BLOB = 67108864n
const MAX_CHUNKS = 1048576n
const BIG = 1n << 40n
const optional = 'optional'
const extensible = { extensible: true }
const digest = bytes(32)
const address = bytes(20)
const code = uint(1, 255)
const detail = text(0, 1024)
const envelope = bytes(1, 57344)
const fp = oneOf('strict', 'fast')
const deviceKind = oneOf('cpu', 'cuda')
const ceilDiv = (a, b) => (a + b - 1n) / b
const product = (numbers) => numbers.reduce((a, b) => a * b, 1n)
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0n)

// ads

export const ChainTerms = record('ChainTerms', {
  1: ['chain_id', uint(1)], 2: ['hub', address], 3: ['token', address], 4: ['decimals', uint(0, 36)]
})
export const SignerBinding = record('SignerBinding', {
  1: ['peer_id', peerId], 2: ['owner', address], 3: ['signer', address], 4: ['sequence', uint()], 5: ['expires_ms', uint()], 6: ['signature', bytes(65)]
})
const Device = record('Device', {
  1: ['kind', deviceKind], 2: ['name', text(0, 64)], 3: ['slots', uint(1, 1024)], 4: ['memory_bytes', uint()], 5: ['score_milli', uint(1)], 6: ['scores', uintMap(0, 16)]
}, extensible)
const PricedOption = record('PricedOption', {
  1: ['work', uint(1, 3)], 2: ['fp', fp], 3: ['price_pusd', uint()], 4: ['max_window', uint(1, 256)]
}, extensible)
const Availability = record('Availability', {
  1: ['idle_only', bool], 2: ['draining', bool], 3: ['until_ms', uint(), optional], 4: ['thermal_percent', uint(0, 100), optional], 5: ['battery_percent', uint(0, 100), optional]
}, extensible)
export const CapabilityAd = record('CapabilityAd', {
  1: ['version', uint(1, 1)],
  2: ['peer_id', peerId],
  3: ['sequence', uint()],
  4: ['issued_ms', uint()],
  5: ['expires_ms', uint()],
  6: ['addresses', array(0, 8, text(1, 256))],
  7: ['devices', array(1, 32, Device)],
  8: ['resources', uintMap(0, 16)],
  9: ['features', array(0, 32, text(1, 64))],
  10: ['options', array(1, 16, PricedOption)],
  11: ['language', array(1, 8, text(1, 64))],
  12: ['chain', ChainTerms],
  13: ['binding', SignerBinding],
  14: ['availability', Availability],
  15: ['region', text(0, 64), optional]
}, {
  extensible: true,
  check (ad) {
    if (ad.issued_ms >= ad.expires_ms || ad.expires_ms > ad.issued_ms + 3600000n) refuse('EXPIRED', 'an ad lives an hour at most')
  }
})
export const adsMessages = messages(
  message(1, 'AdQuery', { 1: ['limit', uint(1, 64)], 2: ['kind', deviceKind, optional], 3: ['fp', fp, optional], 4: ['peer_id', peerId, optional] }),
  message(2, 'AdBatch', { 1: ['ads', array(0, 64, bytes(1, 8192))], 2: ['more', bool] }),
  message(3, 'AdRefusal', { 1: ['code', code], 2: ['detail', detail] })
)

// negotiation: work

const DTYPES = { bool: 1n, int8: 1n, int16: 2n, int32: 4n, int64: 8n, uint8: 1n, uint16: 2n, uint32: 4n, uint64: 8n, float32: 4n, float64: 8n }
const dtype = oneOf(...Object.keys(DTYPES))
const shape = array(1, 4, uint(1, BIG))
const reduce = oneOf('sum', 'prod', 'min', 'max', 'and', 'or', 'xor')
export const sizeOf = (arg) => product(arg.shape) * DTYPES[arg.dtype]

function checkReduce (arg) {
  if (arg.reduce === undefined) return
  const logical = ['and', 'or', 'xor'].includes(arg.reduce)
  if (logical ? arg.dtype.startsWith('float') : arg.dtype === 'bool') refuse('MALFORMED', `${arg.reduce} of ${arg.dtype}`)
}

const BlobRef = record('BlobRef', { 1: ['digest', digest], 2: ['size', uint(0, MAX_BLOB)] })
const KernelRef = record('BlobRef', { 1: ['digest', digest], 2: ['size', uint(1, 65536)] })
const LaunchSpec = record('LaunchSpec', {
  1: ['dims', uint(1, 3)], 2: ['grid', array(3, 3, uint(1, 2147483647))], 3: ['block', array(3, 3, uint(1, 1024))]
}, {
  check (launch) {
    for (const extents of [launch.grid, launch.block]) {
      if (extents.slice(Number(launch.dims)).some((extent) => extent !== 1n)) refuse('MALFORMED', 'an axis beyond dims')
    }
    if (product(launch.block) > 1024n) refuse('OVERSIZED', 'more than 1024 threads in a block')
    if (product(launch.grid) > BIG) refuse('OVERSIZED', 'too many blocks')
  }
})
const ScalarArg = record('ScalarArg', { 1: ['dtype', dtype], 2: ['value', bytes(1, 8)] }, {
  check (arg) { if (BigInt(arg.value.length) !== DTYPES[arg.dtype]) refuse('MALFORMED', 'a scalar of another width') }
})
const ArrayArg = record('ArrayArg', { 1: ['dtype', dtype], 2: ['shape', shape], 3: ['digest', digest] })
const OutArg = record('OutArg', { 1: ['dtype', dtype], 2: ['shape', shape], 3: ['reduce', reduce, optional] }, { check: checkReduce })
const tilesOf = (arg) => product(arg.shape.map((extent, i) => ceilDiv(extent, arg.tile[i])))
const SplitArg = record('SplitArg', {
  1: ['dtype', dtype],
  2: ['shape', shape],
  3: ['tile', shape],
  4: ['axes', array(1, 3, uint(0, 2))],
  5: ['halo', array(1, 3, uint(0, 1048576))],
  6: ['edge', oneOf('zero', 'clamp', 'wrap')],
  7: ['manifest', digest]
}, {
  check (arg) {
    if (arg.tile.length !== arg.shape.length || arg.tile.some((extent, i) => extent > arg.shape[i])) refuse('MALFORMED', 'a tile that is none of its array')
    if (new Set(arg.axes).size !== arg.axes.length || arg.axes.length > arg.shape.length) refuse('MALFORMED', 'axes that are none')
    if (arg.halo.length !== arg.axes.length) refuse('MALFORMED', 'as many halos as axes')
    if (sizeOf(arg) > 4294967296n) refuse('OVERSIZED', 'a split input above 4 GiB')
    if (product(arg.tile) * DTYPES[arg.dtype] > 4194304n) refuse('OVERSIZED', 'a tile above 4 MiB')
    if (tilesOf(arg) > 65536n) refuse('OVERSIZED', 'too many tiles')
  }
})
const CallArg = union({ 1: ScalarArg, 2: ArrayArg })
const WorkArg = union({ 1: ScalarArg, 2: ArrayArg, 3: OutArg, 4: SplitArg })

// The blobs of work, digest in hex to size: arrays and manifests have a bound together, kernels one of their own.
function blobsOf (kernels, args) {
  const blobs = new Map()
  const put = (key, size) => {
    if (blobs.has(hex(key)) && blobs.get(hex(key)) !== size) refuse('BAD_DIGEST', 'one digest, two sizes')
    blobs.set(hex(key), size)
  }
  for (const arg of args) {
    if (arg.is === 'ArrayArg') put(arg.digest, sizeOf(arg))
    if (arg.is === 'SplitArg') put(arg.manifest, 32n * tilesOf(arg))
  }
  if (sum([...blobs.values()]) > MAX_BLOB) refuse('OVERSIZED', 'inputs above 64 MiB')
  for (const kernel of kernels) put(kernel.digest, kernel.size)
  return blobs
}
const hex = (data) => Buffer.from(data).toString('hex')

function checkOutputs (args, chunks, chunkBytes) {
  const outs = args.filter((arg) => arg.is === 'OutArg')
  if (outs.length === 0) refuse('MALFORMED', 'work without an output')
  if (chunks > MAX_CHUNKS) refuse('OVERSIZED', 'too many chunks')
  if (chunkBytes > MAX_BLOB) refuse('OVERSIZED', 'a chunk above 64 MiB')
  if (sum(outs.map(sizeOf)) > MAX_CHUNKS * MAX_BLOB) refuse('OVERSIZED', 'outputs above all bounds')
}

export const ChunkWork = record('ChunkWork', {
  1: ['kernel', KernelRef],
  2: ['entry', text(1, 64)],
  3: ['launch', LaunchSpec],
  4: ['args', array(1, 32, WorkArg)],
  5: ['blocks_per_chunk', uint(1, BIG)],
  6: ['chunk_output_bytes', uint(1, MAX_BLOB)],
  7: ['units_per_chunk', uint(1, 1n << 53n)]
}, {
  check (work) {
    if (work.chunk_output_bytes % work.blocks_per_chunk !== 0n) refuse('MALFORMED', 'a block has whole bytes')
    checkOutputs(work.args, ceilDiv(product(work.launch.grid), work.blocks_per_chunk), work.chunk_output_bytes)
    for (const arg of work.args) {
      if (arg.is !== 'SplitArg') continue
      const axes = [...arg.axes].map(Number).sort()
      if (axes.length !== Number(work.launch.dims) || axes.some((axis, i) => axis !== i)) refuse('MALFORMED', 'each axis of the launch once')
    }
    blobsOf([work.kernel], work.args)
  }
})
const ProgramRef = record('ProgramRef', { 1: ['distribution', text(1, 64)], 2: ['version', text(1, 64)], 3: ['name', text(1, 32)], 4: ['digest', digest] })
const ProgramWork = record('ProgramWork', {
  1: ['program', ProgramRef],
  2: ['items', uint(1, BIG)],
  3: ['args', array(1, 32, WorkArg)],
  4: ['items_per_chunk', uint(1, BIG)],
  5: ['units_per_chunk', uint(1, 1n << 53n)]
}, {
  check (work) {
    if (work.items_per_chunk > work.items) refuse('MALFORMED', 'chunks of more items than there are')
    const outs = work.args.filter((arg) => arg.is === 'OutArg')
    if (outs.some((arg) => arg.shape[0] !== work.items || arg.reduce !== undefined)) refuse('MALFORMED', 'an output has a row for each item')
    const row = sum(outs.map((arg) => sizeOf(arg) / work.items))
    checkOutputs(work.args, ceilDiv(work.items, work.items_per_chunk), row * work.items_per_chunk)
    const splits = work.args.filter((arg) => arg.is === 'SplitArg')
    if (splits.some((arg) => arg.axes.length !== 1 || arg.axes[0] !== 0n)) refuse('MALFORMED', 'split along its items alone')
    if (splits.length > 0 && work.items > 2147483647n) refuse('OVERSIZED', 'too many items for a split input')
    blobsOf([], work.args)
  }
})
const StateArg = record('StateArg', { 1: ['array', uint(0, 31)] })
const NextArg = record('NextArg', { 1: ['array', uint(0, 31)], 2: ['shape', shape, optional], 3: ['reduce', reduce, optional] }, {
  check (arg) { if ((arg.shape === undefined) !== (arg.reduce === undefined)) refuse('MALFORMED', 'shape and reduce belong together') }
})
const RoundArg = record('RoundArg', { 1: ['dtype', oneOf('int32', 'int64', 'uint32', 'uint64')] })
const StepArg = union({ 1: ScalarArg, 2: ArrayArg, 3: StateArg, 4: NextArg, 5: RoundArg })
const RoundSplit = record('RoundSplit', {
  1: ['arg', uint(0, 31)], 2: ['axes', array(1, 3, uint(0, 2))], 3: ['halo', array(1, 3, uint(0, 1048576))], 4: ['edge', oneOf('zero', 'clamp', 'wrap')]
})
const RoundLaunch = record('RoundLaunch', {
  1: ['kernel', KernelRef], 2: ['entry', text(1, 64)], 3: ['launch', LaunchSpec], 4: ['args', array(1, 32, StepArg)], 5: ['splits', array(0, 32, RoundSplit)]
}, {
  check ({ args, launch, splits }) {
    if (!args.some((arg) => arg.is === 'NextArg')) refuse('MALFORMED', 'a launch that gives nothing')
    splits.forEach((split, i) => {
      if (i > 0 && split.arg <= splits[i - 1].arg) refuse('MALFORMED', 'splits ascend, each argument once')
      if (!['ArrayArg', 'StateArg'].includes(args[Number(split.arg)]?.is)) refuse('MALFORMED', 'only an array that is read is split')
      const axes = split.axes.map(Number).sort()
      if (axes.length !== Number(launch.dims) || axes.some((axis, at) => axis !== at)) refuse('MALFORMED', 'each axis of the launch once')
      if (split.halo.length !== axes.length) refuse('MALFORMED', 'as many halos as axes')
    })
  }
})
// The box that all threads of a launch read, in bytes.
function windowOf ({ grid, block }, split, array) {
  if (array.shape.length < split.axes.length) refuse('MALFORMED', 'an array with fewer axes than the launch')
  return DTYPES[array.dtype] * product(array.shape.map((extent, i) => {
    if (i >= split.axes.length) return extent
    const axis = Number(split.axes[i])
    return grid[axis] * block[axis] + 2n * split.halo[i]
  }))
}
const RoundWork = record('RoundWork', {
  1: ['launches', array(1, 8, RoundLaunch)],
  2: ['state', array(1, 32, ArrayArg)],
  3: ['first', uint(0, 2147483647)],
  4: ['rounds', uint(1, 1048575)],
  5: ['rounds_per_chunk', uint(1, 1048575)],
  6: ['units_per_chunk', uint(1, 1n << 53n)]
}, {
  check (work) {
    if (work.rounds_per_chunk > work.rounds) refuse('MALFORMED', 'chunks of more rounds than there are')
    if (work.first + work.rounds > 1n << 31n) refuse('OVERSIZED', 'rounds beyond the last number')
    const args = work.launches.flatMap((launch) => launch.args)
    const given = args.filter((arg) => arg.is === 'NextArg').map((arg) => arg.array)
    for (const arg of args) {
      if ((arg.is === 'NextArg' || arg.is === 'StateArg') && arg.array >= BigInt(work.state.length)) refuse('MALFORMED', 'an array that the state does not have')
    }
    if (given.length !== work.state.length || new Set(given).size !== given.length) refuse('MALFORMED', 'each array of the state is given once')
    for (const arg of args) {
      if (arg.is === 'NextArg') checkReduce({ dtype: work.state[Number(arg.array)].dtype, reduce: arg.reduce })
    }
    const windows = work.launches.flatMap(({ args, launch, splits }) => splits.map((split) => {
      const arg = args[Number(split.arg)]
      return windowOf(launch, split, arg.is === 'StateArg' ? work.state[Number(arg.array)] : arg)
    }))
    if (sum(windows) > MAX_BLOB) refuse('OVERSIZED', 'windows of a round above 64 MiB')
    const state = work.state.map((arg) => Object.defineProperty({ ...arg }, 'is', { value: 'ArrayArg' }))
    if (sum(state.map(sizeOf)) > MAX_BLOB) refuse('OVERSIZED', 'a state above 64 MiB')
    blobsOf(work.launches.map((launch) => launch.kernel), [...args, ...state])
  }
})
const Work = union({ 1: ChunkWork, 3: RoundWork, 4: ProgramWork })

// What a provider takes from ChunkWork.
export function chunksOf (work) {
  const blocks = product(work.launch.grid)
  const count = ceilDiv(blocks, work.blocks_per_chunk)
  return {
    count,
    blobs: blobsOf([work.kernel], work.args),
    chunk (index) {
      const first = index * work.blocks_per_chunk
      const size = first + work.blocks_per_chunk > blocks ? blocks - first : work.blocks_per_chunk
      return {
        first,
        blocks: size,
        bytes: size * work.chunk_output_bytes / work.blocks_per_chunk,
        units: ceilDiv(work.units_per_chunk * size, work.blocks_per_chunk)
      }
    }
  }
}

// negotiation: orders, bids, terms

const Requirement = record('Requirement', {
  1: ['kinds', array(1, 2, deviceKind)],
  2: ['memory_bytes', uint()],
  3: ['features', array(0, 32, text(1, 64))],
  4: ['min_score_milli', uint()],
  5: ['region', text(0, 64), optional]
}, extensible)
const MAX_ATOL = 9218868437227405311n
const Tolerance = record('Tolerance', {
  1: ['rtol32', uint(4517110426252607488n, 4589168020290535424n)],
  2: ['atol32', uint(0, MAX_ATOL)],
  3: ['rtol64', uint(4400016835940974592n, 4589168020290535424n)],
  4: ['atol64', uint(0, MAX_ATOL)]
})
const CheckPolicy = record('CheckPolicy', {
  1: ['kind', oneOf('sample', 'none', 'quorum')], 2: ['per_chunk', uint(0, 1048576)], 3: ['tolerance', Tolerance, optional]
}, extensible)

function checkDeal (deal) {
  if (!deal.standing && deal.work === undefined) refuse('MALFORMED', 'work, or standing')
  if ((deal.fp === 'fast') !== (deal.check.tolerance !== undefined)) refuse('MALFORMED', 'a tolerance is for fast mode')
}

const timeoutPayer = oneOf('requester', 'provider')
const arbiters = array(0, 16, peerId)
export const OrderPayload = record('OrderPayload', {
  1: ['order_id', bytes(16)],
  2: ['created_ms', uint()],
  3: ['expires_ms', uint()],
  4: ['work', Work, optional],
  5: ['requirement', Requirement],
  6: ['max_price_pusd', uint()],
  7: ['ceiling_uusd', uint()],
  8: ['chain', ChainTerms],
  9: ['payer', SignerBinding],
  10: ['check', CheckPolicy],
  11: ['fp', fp],
  12: ['language', text(1, 64)],
  13: ['deadline_ms', uint()],
  14: ['standing', bool],
  15: ['arbiters', arbiters],
  16: ['group_id', bytes(16), optional]
}, {
  extensible: true,
  check (order) {
    checkDeal(order)
    if (order.created_ms >= order.expires_ms || order.expires_ms > order.created_ms + 600000n) refuse('EXPIRED', 'an order lives ten minutes at most')
  }
})
export const BidPayload = record('BidPayload', {
  1: ['order_digest', digest],
  2: ['price_pusd', uint()],
  3: ['slots', uint(1, 1024)],
  4: ['credit_window', uint(1, 1024)],
  5: ['max_window', uint(1, 1024)],
  6: ['payee', address],
  7: ['score_milli', uint(1)],
  8: ['valid_until_ms', uint()],
  9: ['chunk_timeout_ms', uint(1)],
  10: ['timeout_payer', timeoutPayer],
  11: ['hold_until_ms', uint(), optional]
}, {
  extensible: true,
  check (bid) { if (bid.max_window < bid.credit_window) refuse('MALFORMED', 'the first window is above the largest') }
})
export const RefusalPayload = record('RefusalPayload', {
  1: ['order_digest', digest], 2: ['code', code], 3: ['detail', detail], 4: ['retry_after_ms', uint(), optional]
}, extensible)
export const Terms = record('Terms', {
  1: ['version', uint(1, 1)],
  2: ['order_digest', digest],
  3: ['bid_digest', digest],
  4: ['requester', peerId],
  5: ['provider', peerId],
  6: ['created_ms', uint()],
  7: ['deadline_ms', uint()],
  8: ['work', Work, optional],
  9: ['standing', bool],
  10: ['chain', ChainTerms],
  11: ['payer', SignerBinding],
  12: ['payee', address],
  13: ['price_pusd', uint()],
  14: ['ceiling_uusd', uint()],
  15: ['credit_window', uint(1, 1024)],
  16: ['max_window', uint(1, 1024)],
  17: ['check', CheckPolicy],
  18: ['arbiters', arbiters],
  19: ['language', text(1, 64)],
  20: ['fp', fp],
  21: ['chunk_timeout_ms', uint(1)],
  22: ['timeout_payer', timeoutPayer],
  23: ['slots', uint(1, 1024)],
  24: ['group_id', bytes(16), optional]
}, {
  check (terms) {
    checkDeal(terms)
    if (terms.requester === terms.provider || terms.payer.peer_id !== terms.requester) refuse('WRONG_PEER', 'who is who')
    if (terms.deadline_ms <= terms.created_ms) refuse('EXPIRED', 'over before it begins')
    if (terms.max_window < terms.credit_window) refuse('MALFORMED', 'the first window is above the largest')
  }
})
export const negotiationMessages = messages(
  ...['OrderFrame', 'BidFrame', 'RefusalFrame', 'ProposeFrame', 'AcceptFrame'].map((name, i) => message(i + 1, name, { 1: ['envelope', envelope] }))
)

// task

const index = uint(0, MAX_CHUNKS - 1n)
const data = bytes(1, 262144)
const state = uint(1, MAX_CHUNKS - 1n)
const window = uint(1, 1024)
const several = uint(2, 256)
export const ReceiptPayload = record('ReceiptPayload', {
  1: ['task', digest],
  2: ['index', index],
  3: ['code', uint(0, 255)],
  4: ['output', digest],
  5: ['fp', fp],
  6: ['units', uint()],
  7: ['finished_ms', uint()],
  8: ['detail', detail, optional],
  9: ['call', digest, optional]
}, {
  check (receipt) {
    if (receipt.code !== 0n && (receipt.units !== 0n || receipt.output.some((byte) => byte !== 0))) refuse('MALFORMED', 'a failure with an output or units')
  }
})
const InclusionProof = record('InclusionProof', { 1: ['index', index], 2: ['leaves', uint(1, MAX_CHUNKS)], 3: ['path', array(0, 20, digest)] }, {
  check (proof) {
    if (proof.index >= proof.leaves) refuse('MALFORMED', 'a leaf beyond the last')
    let length = 0
    for (let at = proof.index, last = proof.leaves - 1n; last > 0n; at /= 2n, last /= 2n) length += at !== last || at % 2n === 1n ? 1 : 0
    if (proof.path.length !== length) refuse('MALFORMED', 'a path of another length than leaf and tree give')
  }
})
export const ReceiptsPayload = record('ReceiptsPayload', { 1: ['task', digest], 2: ['root', digest], 3: ['leaves', several] })
export const BatchedReceipt = record('BatchedReceipt', { 1: ['receipt', bytes(1, 2048)], 2: ['proof', InclusionProof], 3: ['envelope', bytes(1, 1024)] })
const Holder = record('Holder', { 1: ['peer', peerId], 2: ['addresses', array(0, 8, text(1, 256))] }, {
  check (holder) {
    if (holder.addresses.some((one) => !one.endsWith(`/p2p/${holder.peer}`))) refuse('MALFORMED', 'an address of somebody else')
  }
})
export const taskMessages = messages(
  message(1, 'Open', { 1: ['agreement', envelope] }),
  message(2, 'BlobStart', { 1: ['digest', digest], 2: ['size', uint(1, MAX_BLOB)] }),
  message(3, 'BlobData', { 1: ['data', data] }),
  message(4, 'Assign', { 1: ['index', index], 2: ['count', uint(2, 1024), optional] }),
  message(5, 'Cancel', { 1: ['index', index] }),
  message(6, 'Finish', { 1: ['code', uint(0, 255)], 2: ['detail', detail] }),
  message(7, 'GetState', { 1: ['state', state] }),
  message(8, 'Share', { 1: ['digest', digest], 2: ['root', digest], 3: ['ticket', digest], 4: ['holders', array(0, 16, Holder)] }),
  message(9, 'Call', { 1: ['call', index], 2: ['args', array(0, 32, CallArg)] }),
  message(17, 'Opened', { 1: ['need', array(0, 64, digest)], 2: ['slots', uint(1, 1024)], 3: ['window', window], 4: ['fetches', bool, optional] }),
  message(18, 'Ready', { 1: ['compile_ms', uint()] }),
  message(19, 'Refused', { 1: ['code', code], 2: ['detail', detail], 3: ['line', uint(0, 1048576), optional] }),
  message(20, 'ResultStart', { 1: ['index', index], 2: ['receipt', bytes(1, 4096)], 3: ['size', uint(1, MAX_BLOB)] }),
  message(21, 'ResultData', { 1: ['data', data] }),
  message(22, 'ChunkError', { 1: ['index', index], 2: ['receipt', bytes(1, 4096)] }),
  message(23, 'Notice', {
    1: ['kind', oneOf('pause', 'resume', 'drain', 'window')], 2: ['window', window, optional], 3: ['after_ms', uint(), optional], 4: ['detail', detail, optional]
  }, {
    check (notice) { if ((notice.kind === 'window') !== (notice.window !== undefined)) refuse('MALFORMED', 'a window is for window') }
  }),
  message(24, 'Closed', { 1: ['chunks', uint(0, MAX_CHUNKS)] }),
  message(25, 'StateStart', { 1: ['state', state], 2: ['arrays', array(1, 32, digest)] }),
  message(26, 'StateData', { 1: ['data', data] }),
  message(27, 'StateGone', { 1: ['state', state], 2: ['code', code], 3: ['detail', detail] }),
  message(30, 'Results', { 1: ['index', index], 2: ['count', several], 3: ['finished_ms', uint()], 4: ['receipts', bytes(1, 1024)], 5: ['data', bytes(2, 196608)] })
)

// channel

const ReceiptRef = record('ReceiptRef', { 1: ['task', digest], 2: ['index', index] })
export const channelMessages = messages(
  message(1, 'ChannelHello', { 1: ['chain', ChainTerms], 2: ['payer', SignerBinding], 3: ['payee', address] }),
  message(2, 'VoucherFrame', {
    1: ['amount_uusd', uint()], 2: ['memo', digest], 3: ['signature', bytes(65)], 4: ['first', index, optional], 5: ['receipts', array(0, 512, ReceiptRef), optional]
  }, {
    check (voucher) {
      if ((voucher.first === undefined) !== (voucher.receipts === undefined) || voucher.receipts?.length === 0) refuse('MALFORMED', 'receipts and first, or neither')
    }
  }),
  message(3, 'CloseAsk', { 1: ['amount_uusd', uint()] }),
  message(17, 'ChannelSync', { 1: ['amount_uusd', uint()], 2: ['memo', digest, optional], 3: ['signature', bytes(65), optional] }, {
    check (sync) {
      for (const shown of [sync.memo, sync.signature]) {
        if ((shown !== undefined) !== (sync.amount_uusd > 0n)) refuse('MALFORMED', 'memo and signature of a voucher')
      }
    }
  }),
  message(18, 'VoucherAck', { 1: ['amount_uusd', uint()] }),
  message(19, 'VoucherRefusal', { 1: ['code', code], 2: ['detail', detail], 3: ['best_uusd', uint()], 4: ['deposit_uusd', uint(), optional] }),
  message(20, 'ConsentFrame', { 1: ['epoch', uint(0, 16777214)], 2: ['deadline_s', uint(0, (1n << 40n) - 1n)], 3: ['signature', bytes(65)] })
)
export { UINT64_MAX, BlobRef }
