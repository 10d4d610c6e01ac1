"""The Noise handshake: against an independent implementation, cut in every way, forged, replayed and mutated."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from nacl.signing import SigningKey

from p2pcompute.overlay.noise import (
    AESGCM,
    CHACHAPOLY,
    MAX_MESSAGE_BYTES,
    TABLE,
    BadIdentity,
    BadMessage,
    Credentials,
    Handshake,
    NoiseError,
    Opener,
    Payload,
    Role,
    Sealer,
    State,
    Suite,
    WrongPeer,
)

from .._mutants import MUTANTS, SEED
from ._noise_parts import YAMUX, both, credentials, framed, ours, shake, signing_key, theirs, x25519

SUITES = pytest.mark.parametrize("suite", [CHACHAPOLY, AESGCM], ids=lambda suite: suite.name.decode())


# Against the package `noise`: byte for byte, with the same keys


@SUITES
@pytest.mark.parametrize("prologue", [b"", b"what both have seen"])
def test_an_independent_initiator_says_the_same(suite: Suite, prologue: bytes) -> None:
    """Ours answers theirs, and a second one of ours, with their keys, says what theirs says."""
    responder, twin = ours(Role.RESPONDER, suite, prologue=prologue), ours(Role.INITIATOR, suite, prologue=prologue)
    other = theirs(suite, Role.INITIATOR, "initiator", prologue)
    first = framed(bytes(other.write_message()))
    assert twin.data_to_send() == first
    responder.receive_data(first)
    second = responder.data_to_send()
    assert bytes(other.read_message(second[2:])) == credentials("responder").payload
    twin.receive_data(second)
    third = framed(bytes(other.write_message(credentials("initiator").payload)))
    assert twin.data_to_send() == third
    result = responder.receive_data(third)
    assert result is not None
    assert other.handshake_finished
    assert result.hash == other.get_handshake_hash()
    assert twin.result is not None
    assert twin.result.hash == result.hash
    for length in (0, 1, 200, 65_519):
        sealed = bytes(other.encrypt(bytes(length)))
        opened = memoryview(bytearray(len(sealed) + 2))
        if not length:
            opener, sealer = Opener(suite, result.receiving_key), Sealer(suite, result.sending_key)
        assert opener.open_into(memoryview(framed(sealed)), opened) == (len(sealed) + 2, length)
        assert opened[:length] == bytes(length)
        assert other.decrypt(sealer.seal([b"x" * length])[2:] if length else empty_record(sealer)) == b"x" * length


def empty_record(sealer: Sealer) -> bytes:
    record = memoryview(bytearray(18))
    assert sealer.seal_into(b"", record) == 18
    return bytes(record[2:])


@SUITES
def test_an_independent_responder_says_the_same(suite: Suite) -> None:
    initiator, twin = both(suite)
    other = theirs(suite, Role.RESPONDER, "responder")
    first = initiator.data_to_send()
    other.read_message(first[2:])
    twin.receive_data(first)
    second = framed(bytes(other.write_message(credentials("responder").payload)))
    assert twin.data_to_send() == second
    result = initiator.receive_data(second)
    assert result is not None
    third = initiator.data_to_send()
    assert bytes(other.read_message(third[2:])) == credentials("initiator").payload
    assert other.handshake_finished
    assert result.hash == other.get_handshake_hash()
    sealer, opener = Sealer(suite, result.sending_key), Opener(suite, result.receiving_key)
    for number in range(300):  # past a byte of the nonce
        assert other.decrypt(sealer.seal([b"%d" % number])[2:]) == b"%d" % number
        sealed = framed(bytes(other.encrypt(b"back %d" % number)))
        opened = memoryview(bytearray(len(sealed)))
        consumed, written = opener.open_into(memoryview(sealed), opened)
        assert (consumed, bytes(opened[:written])) == (len(sealed), b"back %d" % number)


# What it comes to


@SUITES
def test_both_know_each_other(suite: Suite) -> None:
    initiator, responder = both(suite)
    dialled, answered = shake(initiator, responder)
    assert dialled.identity == credentials("responder").identity
    assert answered.identity == credentials("initiator").identity
    assert dialled.static == x25519("responder static").public_key().public_bytes_raw()
    assert (dialled.sending_key, dialled.receiving_key) == (answered.receiving_key, answered.sending_key)
    assert dialled.sending_key != dialled.receiving_key
    assert dialled.hash == answered.hash
    assert dialled.muxer == answered.muxer == YAMUX
    assert initiator.state is responder.state is State.DONE


def test_two_sessions_of_the_same_peers_share_no_key() -> None:
    results = [
        shake(Handshake(CHACHAPOLY, Role.INITIATOR, a), Handshake(CHACHAPOLY, Role.RESPONDER, b))[0]
        for a, b in [(credentials("a"), credentials("b"))] * 2
    ]
    assert len({key for result in results for key in (result.sending_key, result.receiving_key, result.hash)}) == 6


@pytest.mark.parametrize(
    ("dials", "listens", "agreed"),
    [
        (("/b", "/a"), ("/a", "/b"), "/b"),
        (("/a", "/b"), ("/b", "/c"), "/b"),
        ((), ("/a",), None),
        (("/a",), (), None),
        ((), (), None),
    ],
)
def test_the_initiators_first_common_muxer_is_taken(
    dials: tuple[str, ...], listens: tuple[str, ...], agreed: str | None
) -> None:
    initiator = Handshake(CHACHAPOLY, Role.INITIATOR, credentials("a", dials))
    responder = Handshake(CHACHAPOLY, Role.RESPONDER, credentials("b", listens))
    assert [result.muxer for result in shake(initiator, responder)] == [agreed, agreed]


def test_peers_without_a_common_muxer_do_not_connect() -> None:
    initiator = Handshake(CHACHAPOLY, Role.INITIATOR, credentials("a", ("/a",)))
    responder = Handshake(CHACHAPOLY, Role.RESPONDER, credentials("b", ("/b",)))
    with pytest.raises(BadMessage, match="no muxer"):
        shake(initiator, responder)


def test_the_table_is_the_pattern_xx() -> None:
    said: list[str] = []
    state = State.SILENT
    while state is not State.DONE:
        step = TABLE[state]
        said.append(f"{step.sender.value}: {', '.join(token.value for token in step.tokens)}")
        assert step.sender is (Role.INITIATOR if len(said) % 2 else Role.RESPONDER)
        state = step.to
    assert said == ["initiator: e", "responder: e, ee, s, es", "initiator: s, se"]
    assert set(TABLE) == set(State) - {State.DONE}


# However it is cut


def transcript(suite: Suite, role: Role) -> tuple[bytes, bytes]:
    """What `role` receives in a handshake, and what follows it: a record."""
    initiator, responder = both(suite)
    first = initiator.data_to_send()
    responder.receive_data(first)
    second = responder.data_to_send()
    initiator.receive_data(second)
    third = initiator.data_to_send()
    assert initiator.result is not None
    responder.receive_data(third)
    assert responder.result is not None
    if role is Role.RESPONDER:
        return first + third, Sealer(suite, initiator.result.sending_key).seal([b"and then"])
    return second, Sealer(suite, responder.result.sending_key).seal([b"and then"])


def said_and_heard(suite: Suite, role: Role, pieces: list[bytes]) -> tuple[object, bytes, bytes, State]:
    side = ours(role, suite)
    sent = b""
    trailing = b""
    for piece in pieces:
        sent += side.data_to_send()
        if side.result is None:
            side.receive_data(piece)
            trailing = side.trailing
        else:
            trailing += piece
    return side.result, sent + side.data_to_send(), trailing, side.state


@SUITES
@pytest.mark.parametrize("role", list(Role))
def test_every_cut_gives_the_same(suite: Suite, role: Role) -> None:
    handshake, record = transcript(suite, role)
    *before, last = messages_of(handshake)
    data = [*before, last + record]
    whole = said_and_heard(suite, role, data)
    assert whole[2] == record
    assert whole[3] is State.DONE
    for number, message in enumerate(data):
        for at in range(1, len(message)):
            cut = [*data[:number], message[:at], message[at:], *data[number + 1 :]]
            assert said_and_heard(suite, role, cut) == whole
    bytewise = [message[at : at + 1] for message in data for at in range(len(message))]
    assert said_and_heard(suite, role, bytewise) == whole


def messages_of(handshake: bytes) -> list[bytes]:
    """What one side says in a handshake, with lengths."""
    messages = []
    while handshake:
        end = 2 + int.from_bytes(handshake[:2], "big")
        messages.append(handshake[:end])
        handshake = handshake[end:]
    return messages


# Attacks


def test_a_long_message_is_refused_before_it_has_come() -> None:
    for length in (MAX_MESSAGE_BYTES + 1, 0xFFFF):
        with pytest.raises(BadMessage, match="over"):
            ours(Role.RESPONDER).receive_data(length.to_bytes(2, "big"))
    with pytest.raises(BadMessage, match="small order"):  # this long it is read
        ours(Role.INITIATOR).receive_data(framed(bytes(MAX_MESSAGE_BYTES)))


@pytest.mark.parametrize("length", range(33))
def test_a_message_that_is_cut_off(length: int) -> None:
    responder = ours(Role.RESPONDER)
    if length < 32:
        with pytest.raises(BadMessage, match="cut off"):
            responder.receive_data(framed(bytes(length)))
    with pytest.raises(BadMessage):
        ours(Role.INITIATOR).receive_data(framed(b"\x09" * length))


def test_a_first_message_may_say_more_and_it_means_nothing() -> None:
    """Other implementations may send a payload there. It is bound into the hash, and no identity is read from it."""
    other = theirs(CHACHAPOLY, Role.INITIATOR, "initiator")
    responder = ours(Role.RESPONDER)
    responder.receive_data(framed(bytes(other.write_message(credentials("mallory").payload))))
    other.read_message(responder.data_to_send()[2:])
    result = responder.receive_data(framed(bytes(other.write_message(credentials("initiator").payload))))
    assert result is not None
    assert result.identity == credentials("initiator").identity


SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_key_of_small_order_makes_no_session(key: str) -> None:
    """With it the shared secret is zero, whatever ours is: a session that depends on nothing."""
    with pytest.raises(BadMessage, match="small order"):
        ours(Role.RESPONDER).receive_data(framed(bytes.fromhex(key)))


def answered_by(payload: bytes, *, expected: bytes | None = None) -> None:
    """Our dialler meets a responder that knows Noise and says `payload` of itself."""
    other = theirs(CHACHAPOLY, Role.RESPONDER, "responder")
    initiator = ours(Role.INITIATOR, expected=expected)
    other.read_message(initiator.data_to_send()[2:])
    initiator.receive_data(framed(bytes(other.write_message(payload))))


def visited_by(payload: bytes) -> None:
    """Our listener meets such an initiator."""
    other = theirs(CHACHAPOLY, Role.INITIATOR, "initiator")
    responder = ours(Role.RESPONDER)
    responder.receive_data(framed(bytes(other.write_message())))
    other.read_message(responder.data_to_send()[2:])
    responder.receive_data(framed(bytes(other.write_message(payload))))


VISITS = pytest.mark.parametrize(
    ("meet", "name"), [(answered_by, "responder"), (visited_by, "initiator")], ids=["dialling", "listening"]
)


@VISITS
def test_the_payload_of_another_is_refused(meet: Callable[[bytes], None], name: str) -> None:
    """Mallory has seen the signature of Bob's static key. It is not the key that Mallory has."""
    meet(credentials(name).payload)
    with pytest.raises(BadIdentity, match="does not verify"):
        meet(credentials("bob").payload)


@VISITS
def test_a_signature_over_anything_else_is_refused(meet: Callable[[bytes], None], name: str) -> None:
    key = signing_key(name)
    static = x25519(f"{name} static").public_key().public_bytes_raw()
    identity = bytes(key.verify_key)
    for signed in (static, b"noise-libp2p-static-key" + static, b"noise-libp2p-static-key:" + static[:31], b""):
        with pytest.raises(BadIdentity, match="does not verify"):
            meet(Payload(identity=identity, signature=key.sign(signed).signature).encode())
    good = key.sign(b"noise-libp2p-static-key:" + static).signature
    meet(Payload(identity=identity, signature=good).encode())


def test_who_answers_has_to_be_whom_we_dialled() -> None:
    answered_by(credentials("responder").payload, expected=credentials("responder").identity)
    with pytest.raises(WrongPeer):
        answered_by(credentials("responder").payload, expected=credentials("bob").identity)


@VISITS
def test_a_key_that_everybody_has_proves_nothing(meet: Callable[[bytes], None], name: str) -> None:
    """Under a key of small order one signature holds for every message."""
    identity = (1).to_bytes(32, "little")  # the neutral element
    for signature in (identity + bytes(32), bytes(64)):
        with pytest.raises(BadIdentity, match="does not verify"):
            meet(Payload(identity=identity, signature=signature).encode())


@VISITS
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x0a\x00",
        b"\x0a\x25\x08\x00\x12\x21" + bytes(33),  # an RSA key
        b"\x0a\x25\x08\x02\x12\x21\x02" + bytes(32),  # a secp256k1 key
        b"\x0a\x24\x12\x20" + bytes(32) + b"\x08\x01",  # an Ed25519 key in another order
        b"\x0a\x26\x08\x01\x12\x20" + bytes(32) + b"\x18\x00",  # and with more behind it
        b"\x0a\x24\x08\x01\x12\x20" + bytes(32),  # nothing signed
        b"\x0a\x24\x08\x01\x12\x20" + bytes(32) + b"\x12\x3f" + bytes(63),
    ],
    ids=["nothing", "no key", "RSA", "secp256k1", "another order", "more", "unsigned", "a short signature"],
)
def test_other_identities_are_refused(meet: Callable[[bytes], None], name: str, payload: bytes) -> None:
    with pytest.raises(BadIdentity):
        meet(payload)


@VISITS
def test_a_recorded_handshake_can_not_be_replayed(meet: Callable[[bytes], None], name: str) -> None:
    """All that an eavesdropper has: our side has a new ephemeral key, so the recorded messages fit no more."""
    role = Role.INITIATOR if name == "responder" else Role.RESPONDER
    recorded, _ = transcript(CHACHAPOLY, role)
    messages = messages_of(recorded)
    assert said_and_heard(CHACHAPOLY, role, messages)[3] is State.DONE  # against the same key it does
    anew = Handshake(CHACHAPOLY, role, credentials(role.value))
    for message in messages[:-1]:
        anew.receive_data(message)
    with pytest.raises(BadMessage, match="does not authenticate"):
        anew.receive_data(messages[-1])


def test_what_can_not_have_known_our_message_is_refused_before_a_key_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As whoever plays a recorded handshake again says it: all at once. The same, cut between messages, is heard."""
    recorded, _ = transcript(CHACHAPOLY, Role.RESPONDER)
    first = messages_of(recorded)[0]
    monkeypatch.setattr(Handshake, "_mix", lambda *_: pytest.fail("a key exchange"))
    for more in (b"\x00", recorded[len(first) :]):
        with pytest.raises(BadMessage, match="before ours was known"):
            ours(Role.RESPONDER).receive_data(first + more)


def test_our_own_message_is_not_taken_back() -> None:
    initiator = ours(Role.INITIATOR)
    with pytest.raises(BadMessage):
        initiator.receive_data(initiator.data_to_send())


def test_a_handshake_of_one_suite_is_none_of_the_other() -> None:
    initiator, responder = ours(Role.INITIATOR, AESGCM), ours(Role.RESPONDER, CHACHAPOLY)
    responder.receive_data(initiator.data_to_send())
    with pytest.raises(BadMessage, match="does not authenticate"):
        initiator.receive_data(responder.data_to_send())


def test_what_failed_stays_failed() -> None:
    responder = ours(Role.RESPONDER)
    with pytest.raises(BadMessage) as caught:
        responder.receive_data(b"\xff\xff")
    first, _ = transcript(CHACHAPOLY, Role.RESPONDER)
    with pytest.raises(BadMessage) as again:
        responder.receive_data(first)
    assert again.value is caught.value
    assert responder.data_to_send() == responder.trailing == b""


def test_a_signature_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[bytes] = []

    def count(message: bytes, signature: bytes, key: bytes) -> bool:
        verified.append(key)
        return True

    monkeypatch.setattr("p2pcompute.overlay.noise._handshake.is_signed", count)
    shake(*both())
    assert verified == [credentials("responder").identity, credentials("initiator").identity]


def test_our_own_signature_is_made_once() -> None:
    key, signed = SigningKey.generate(), []

    def sign(message: bytes) -> bytes:
        signed.append(message)
        return key.sign(message).signature

    mine = Credentials(bytes(key.verify_key), sign)
    for _ in range(3):
        shake(Handshake(CHACHAPOLY, Role.INITIATOR, mine), ours(Role.RESPONDER))
    assert len(signed) == 1


@SUITES
@pytest.mark.parametrize("role", list(Role))
def test_no_mutants_of_a_handshake_are_accepted(suite: Suite, role: Role) -> None:
    """Flipped bits, cut and swapped stretches, other lengths: all refused by a typed error, or waited for in vain.

    Only what is not there changes nothing: a mutant that is the original.
    """
    original, _ = transcript(suite, role)
    chance = random.Random(f"{suite.name!r} {role} {SEED}")
    mutants = {mutate(original, chance) for _ in range(MUTANTS // 4)} - {original}
    assert len(mutants) > MUTANTS // 8
    ends = {"refused": 0, "waits": 0}
    for mutant in mutants:
        side = ours(role, suite)
        try:
            side.receive_data(mutant)
        except NoiseError:
            ends["refused"] += 1
        else:
            if mutant.startswith(original):
                continue  # records follow
            assert side.result is None
            ends["waits"] += 1
    assert min(ends.values()) > 100


def mutate(original: bytes, chance: random.Random) -> bytes:
    data = bytearray(original)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data))
        kind = chance.randrange(6)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        elif kind == 2:
            del data[at : at + chance.randrange(1, 40)]
        elif kind == 3:
            data[at:at] = chance.randbytes(chance.randrange(1, 40))
        elif kind == 4:
            source = chance.randrange(len(data))
            data[at : at + 16] = data[source : source + 16]
        else:
            del data[at:]
        if not data:
            data = bytearray(original)
    return bytes(data)
