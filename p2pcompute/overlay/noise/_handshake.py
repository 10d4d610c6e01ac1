"""The XX handshake of noise-libp2p, without I/O (Noise rev. 34 §5.3 and §7.5; libp2p/specs noise).

```
-> e
<- e, ee, s, es, payload
-> s, se, payload
```

Who answers spends one key pair and two Diffie-Hellman operations on a stranger and keeps some hundred bytes. What a
peer says of itself is looked at once all of its message authenticates, and its signature once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from p2pcompute_protocols.envelope import is_signed

from ._errors import BadIdentity, BadMessage, NoiseError, WrongPeer
from ._payload import STATIC_KEY_PREFIX, Payload
from ._suites import TAG_BYTES, Suite, SymmetricState

__all__ = ["MAX_MESSAGE_BYTES", "TABLE", "Credentials", "Handshake", "Handshaken", "Role", "State", "Step", "Token"]

MAX_MESSAGE_BYTES = 4096  # of a handshake message; Noise has 65,535, and ours have 250
_KEY_BYTES = 32
_LENGTH_BYTES = 2


class Role(enum.Enum):
    """Who speaks first."""

    INITIATOR = "initiator"
    RESPONDER = "responder"

    @property
    def other(self) -> Role:
        """The opposite role."""
        return Role.RESPONDER if self is Role.INITIATOR else Role.INITIATOR


class State(enum.Enum):
    """Where the dialogue is; both sides move through it together."""

    SILENT = enum.auto()  # nothing was said
    CALLED = enum.auto()  # the initiator's ephemeral key is known
    ANSWERED = enum.auto()  # so are the responder's keys
    DONE = enum.auto()


class Token(enum.Enum):
    """What stands in a message pattern (§7.1)."""

    E = "e"
    S = "s"
    EE = "ee"
    ES = "es"
    SE = "se"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A message: who sends it, what is in it, whether a payload follows, and where it leads."""

    sender: Role
    tokens: tuple[Token, ...]
    says_who: bool
    to: State


TABLE: Mapping[State, Step] = MappingProxyType(
    {
        State.SILENT: Step(sender=Role.INITIATOR, tokens=(Token.E,), says_who=False, to=State.CALLED),
        State.CALLED: Step(
            sender=Role.RESPONDER, tokens=(Token.E, Token.EE, Token.S, Token.ES), says_who=True, to=State.ANSWERED
        ),
        State.ANSWERED: Step(sender=Role.INITIATOR, tokens=(Token.S, Token.SE), says_who=True, to=State.DONE),
    }
)


class Credentials:
    """Who we are in every handshake: a static key of this run, which the identity has signed once.

    Args:
        identity: our raw Ed25519 public key, 32 bytes.
        sign: the 64-byte Ed25519 signature of a message by that key.
        muxers: protocol IDs of the muxers that we speak, the best first; empty for no early negotiation.
        static: the X25519 key, for tests; a new one by default.
    """

    __slots__ = ("identity", "muxers", "payload", "static", "static_public")

    def __init__(
        self,
        identity: bytes,
        sign: Callable[[bytes], bytes],
        *,
        muxers: tuple[str, ...] = (),
        static: X25519PrivateKey | None = None,
    ) -> None:
        self.identity = identity
        self.muxers = muxers
        self.static = static if static is not None else X25519PrivateKey.generate()
        self.static_public = self.static.public_key().public_bytes_raw()
        signature = sign(STATIC_KEY_PREFIX + self.static_public)
        self.payload = Payload(identity=identity, signature=signature, muxers=muxers or None).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshaken:
    """Both sides know each other.

    `identity` and `static` are the peer's raw Ed25519 and X25519 keys, `muxer` is what both agreed on without a further
    round trip (None where the peer has no early negotiation), `hash` names this session and no other.
    """

    identity: bytes
    static: bytes
    muxer: str | None
    hash: bytes
    sending_key: bytes
    receiving_key: bytes


class Handshake:
    """One side of one handshake. Feed `receive_data`, send what `data_to_send` gives, until there is a result.

    Args:
        suite: the Noise protocol that was negotiated.
        role: whether we dialled.
        credentials: who we are.
        expected: the raw identity that was dialled; None takes any.
        prologue: what both sides have to have seen alike before; libp2p has none.
        ephemeral: our ephemeral key, for tests; a new one by default.
    """

    def __init__(
        self,
        suite: Suite,
        role: Role,
        credentials: Credentials,
        *,
        expected: bytes | None = None,
        prologue: bytes = b"",
        ephemeral: X25519PrivateKey | None = None,
    ) -> None:
        self.suite = suite
        self.role = role
        self.state = State.SILENT
        self.result: Handshaken | None = None
        self._credentials = credentials
        self._expected = expected
        self._symmetric = SymmetricState(suite, prologue)
        self._ephemeral = X25519PrivateKey.generate() if ephemeral is None else ephemeral  # before there is a message
        self._their_ephemeral: X25519PublicKey | None = None
        self._their_static: X25519PublicKey | None = None
        self._theirs: Payload | None = None
        self._buffer = bytearray()
        self._outgoing = bytearray()
        self._broken: NoiseError | None = None
        self._speak()

    @property
    def trailing(self) -> bytes:
        """What came behind the handshake: the beginning of the first records."""
        return bytes(self._buffer) if self.result is not None else b""

    def data_to_send(self) -> bytes:
        """What has to be sent now; empty where it is the peer's turn."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive_data(self, data: bytes | bytearray | memoryview) -> Handshaken | None:
        """Take bytes from the peer, cut in whatever way; give the result once there is one.

        After it what comes belongs to records, and is kept in `trailing`.

        Raises:
            BadMessage, BadIdentity, WrongPeer: the handshake has failed for good, and each further call says so again.
        """
        if self._broken is not None:
            raise self._broken
        self._buffer += data
        try:
            while self.result is None:
                message = self._next_message()
                if message is None:
                    return None
                self._hear(message)
                if self._buffer and self.state is State.CALLED:  # before it costs us a key exchange
                    raise BadMessage("more than the first message, before ours was known")
                self._speak()
        except NoiseError as exc:
            self._broken = exc
            self._buffer.clear()
            self._outgoing.clear()
            raise
        return self.result

    def _next_message(self) -> bytes | None:
        if len(self._buffer) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        if end - _LENGTH_BYTES > MAX_MESSAGE_BYTES:  # said before it is waited for
            raise BadMessage(f"a handshake message over {MAX_MESSAGE_BYTES} bytes")
        if len(self._buffer) < end:
            return None
        message = bytes(self._buffer[_LENGTH_BYTES:end])
        del self._buffer[:end]
        return message

    def _speak(self) -> None:
        """Write our messages as far as it is our turn."""
        while (step := TABLE.get(self.state)) is not None and step.sender is self.role:
            message = bytearray()
            for token in step.tokens:
                if token is Token.E:
                    public = self._ephemeral.public_key().public_bytes_raw()
                    self._symmetric.mix_hash(public)
                    message += public
                elif token is Token.S:
                    message += self._symmetric.encrypt_and_hash(self._credentials.static_public)
                else:
                    self._mix(token)
            message += self._symmetric.encrypt_and_hash(self._credentials.payload if step.says_who else b"")
            self._outgoing += len(message).to_bytes(_LENGTH_BYTES, "big") + message
            self._go_to(step.to)

    def _hear(self, message: bytes) -> None:
        """Take a message of the peer. It is the peer's turn, for we have spoken as far as we may."""
        step = TABLE[self.state]
        at = 0
        for token in step.tokens:
            if token is Token.E:
                key, at = _take(message, at, _KEY_BYTES)
                self._symmetric.mix_hash(key)
                self._their_ephemeral = X25519PublicKey.from_public_bytes(key)
            elif token is Token.S:
                key, at = _take(message, at, _KEY_BYTES + TAG_BYTES)
                self._their_static = X25519PublicKey.from_public_bytes(self._symmetric.decrypt_and_hash(key))
            else:
                self._mix(token)
        payload = self._symmetric.decrypt_and_hash(message[at:])
        if step.says_who:  # what stands in a message that does not is bound into the hash and means nothing
            self._theirs = self._identify(Payload.decode(payload))
        self._go_to(step.to)

    def _mix(self, token: Token) -> None:
        """One Diffie-Hellman operation. Its letters name the initiator's key first, then the responder's."""
        letters = token.value if self.role is Role.INITIATOR else token.value[::-1]  # ours, then the peer's
        private = self._ephemeral if letters[0] == "e" else self._credentials.static
        public = self._their_ephemeral if letters[1] == "e" else self._their_static
        assert private is not None
        assert public is not None
        try:
            secret = private.exchange(public)
        except ValueError:
            raise BadMessage("a key of small order in a handshake message") from None
        self._symmetric.mix_key(secret)

    def _identify(self, theirs: Payload) -> Payload:
        assert self._their_static is not None
        signed = STATIC_KEY_PREFIX + self._their_static.public_bytes_raw()
        if not is_signed(signed, theirs.signature, theirs.identity):
            raise BadIdentity("the peer's signature of its static key does not verify")
        if self._expected is not None and theirs.identity != self._expected:
            raise WrongPeer("somebody else answers than the one that was dialled")
        return theirs

    def _go_to(self, state: State) -> None:
        self.state = state
        if state is not State.DONE:
            return
        assert self._theirs is not None
        assert self._their_static is not None
        first, second = self._symmetric.split()
        initiates = self.role is Role.INITIATOR
        self.result = Handshaken(
            identity=self._theirs.identity,
            static=self._their_static.public_bytes_raw(),
            muxer=self._agree(),
            hash=self._symmetric.hash,
            sending_key=first if initiates else second,
            receiving_key=second if initiates else first,
        )

    def _agree(self) -> str | None:
        """The first muxer of the initiator's that the responder speaks (libp2p/specs inlined-muxer-negotiation)."""
        assert self._theirs is not None
        ours, theirs = self._credentials.muxers, self._theirs.muxers
        if not ours or theirs is None:
            return None
        first, second = (ours, theirs) if self.role is Role.INITIATOR else (theirs, ours)
        for muxer in first:
            if muxer in second:
                return muxer
        raise BadMessage("the peer speaks no muxer that we speak")


def _take(message: bytes, at: int, count: int) -> tuple[bytes, int]:
    if len(message) - at < count:
        raise BadMessage("a handshake message that is cut off")
    return message[at : at + count], at + count
