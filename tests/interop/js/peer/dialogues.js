// Dialogues over request streams, as protocols/request/README.md has them: each step is a request, whose body begins with
// the dialogue's number and the step's, and what is said to it is the answer.
import { Fault, concat } from './cbor.js'
import { Dialogue } from './frames.js'
import { Unanswered } from './requests.js'

const HEAD = 9
const AT_ONCE = 16 // dialogues of one peer
const EXPIRED = 6
const NO_CAPACITY = 13
const nothing = new Uint8Array(0)

// One dialogue's bytes, as its server reads and writes them: what it says until it reads again answers what was heard.
class Turns {
  constructor () {
    this.steps = 0
    this.heard = null
    this.left = false
    this.said = []
    this.question = null // who waits for the answer
    this.wake = () => {}
  }

  // Gives the answer to step `number`.
  step (number, body) {
    if (body.length === 0) {
      this.left = true
      this.settle(new Unanswered(EXPIRED, 'you have left'))
      this.wake()
      return nothing
    }
    if (number !== this.steps || this.question !== null) throw new Fault('OUT_OF_ORDER', 'a step out of its turn')
    this.steps++
    this.heard = body
    return new Promise((resolve, reject) => {
      this.question = { resolve, reject }
      this.wake()
    })
  }

  settle (error = null) {
    const question = this.question
    if (question === null) return
    this.question = null
    const answer = concat(...this.said.splice(0))
    if (error === null && answer.length === 0) error = new Fault('MALFORMED', 'a step that is not a whole message')
    if (error === null) question.resolve(answer)
    else question.reject(error)
  }

  async some () {
    if (this.heard === null) this.settle()
    while (this.heard === null && !this.left) await new Promise((resolve) => { this.wake = resolve })
    const heard = this.heard
    this.heard = null
    return heard
  }
}

// The dialogues of a protocol that are under way, over whatever streams their steps come.
export class Dialogues {
  constructor (id, serve) {
    this.id = id
    this.serve = serve
    this.underWay = new Map()
  }

  // The answer to a request's body.
  async answer (body, requester) {
    if (body.length < HEAD) throw new Fault('MALFORMED', 'no head of a step')
    const number = new DataView(body.buffer, body.byteOffset, HEAD).getBigUint64(0)
    const [step, said] = [body[HEAD - 1], body.subarray(HEAD)]
    const key = `${requester} ${number}`
    if (step === 0) {
      if (this.underWay.has(key)) throw new Fault('REPLAYED', 'a dialogue that is under way')
      if (said.length === 0) throw new Fault('MALFORMED', 'a dialogue that begins with nothing')
      if ([...this.underWay.keys()].filter((other) => other.startsWith(`${requester} `)).length >= AT_ONCE) throw new Unanswered(NO_CAPACITY, 'too many dialogues')
      this.begin(key, requester)
    }
    const turns = this.underWay.get(key)
    if (turns === undefined) throw new Unanswered(EXPIRED, 'no such dialogue')
    return await turns.step(step, said)
  }

  begin (key, requester) {
    const turns = new Turns()
    this.underWay.set(key, turns)
    const dialogue = new Dialogue(this.id, turns, turns, 'provider', async (_, bytes) => { turns.said.push(bytes) })
    const over = (error) => {
      turns.settle(error)
      this.underWay.delete(key)
    }
    this.serve(dialogue, requester).then(() => over(null), over)
  }
}
