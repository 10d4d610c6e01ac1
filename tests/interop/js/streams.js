// Streams of js-libp2p, and the lines of JSON by which a test talks to a program.
import { createInterface } from 'node:readline'

// A crowded machine takes many times as long as a quiet one: the bounds of a hang, and nothing else.
export const PATIENCE_MS = 300_000
export const patient = {
  dialTimeout: PATIENCE_MS,
  inboundUpgradeTimeout: PATIENCE_MS,
  inboundStreamProtocolNegotiationTimeout: PATIENCE_MS,
  outboundStreamProtocolNegotiationTimeout: PATIENCE_MS
}

export const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')

export async function sendAll (stream, data) {
  if (!stream.send(data)) await stream.onDrain()
}

// Bytes of a stream, as many as are asked for at a time. Not by its async iterator: that one never ends where the other
// side has closed before somebody iterates.
export class Reader {
  constructor (stream) {
    this.held = []
    this.size = 0
    this.ended = stream.readableEnded
    this.error = null
    this.wake = () => {}
    stream.addEventListener('message', ({ data }) => {
      this.held.push(Buffer.from(data.subarray()))
      this.size += data.byteLength
      this.wake()
    })
    stream.addEventListener('end', () => this.end(null))
    stream.addEventListener('close', ({ error }) => this.end(error ?? null))
    if (stream.status === 'reset' || stream.status === 'aborted') this.end(new Error(`the stream is ${stream.status}`))
  }

  end (error) {
    this.ended = true
    this.error ??= error
    this.wake()
  }

  async more () {
    if (this.error !== null) throw this.error
    if (!this.ended) {
      await new Promise((resolve) => { this.wake = resolve })
      if (this.error !== null) throw this.error
    }
  }

  take (size) {
    const all = this.held.length === 1 ? this.held[0] : Buffer.concat(this.held)
    this.held = all.length > size ? [all.subarray(size)] : []
    this.size = all.length - size
    return all.subarray(0, size)
  }

  async some () {
    while (this.size === 0) {
      await this.more()
      if (this.ended && this.size === 0) return null
    }
    return this.take(this.size)
  }

  async exactly (size) {
    while (this.size < size) {
      await this.more()
      if (this.ended && this.size < size) throw new Error(`the stream ended ${size - this.size} bytes early`)
    }
    return this.take(size)
  }

  async rest () {
    const parts = []
    for (let part; (part = await this.some()) !== null;) parts.push(part)
    return Buffer.concat(parts)
  }
}

// Runs commands until stdin ends: {"id": 1, "do": "dial", ...} is answered by {"id": 1, "result": {...}}, or "error".
export async function runCommands (commands) {
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line)
    const answer = (fields) => say({ id: command.id, ...fields })
    commands[command.do](command).then(
      (result) => answer({ result }),
      (error) => answer({ error: { name: error.name, message: error.message, causes: (error.errors ?? []).map((one) => `${one.name}: ${one.message}`) } })
    )
  }
}
