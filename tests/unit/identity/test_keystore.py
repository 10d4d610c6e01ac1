"""The owner's key under a password: what other wallets write and read, and what a forged file can do."""

from __future__ import annotations

import json
import secrets
import traceback
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import IdentityError
from p2pcompute.identity import KeystoreError, WalletKey, WrongPassword, decrypt_keystore, encrypt_keystore
from p2pcompute.identity import keystore_address as address_in

N = 2**4  # scrypt's cost in tests that need no more
SECRET = bytes(range(100, 132))

# The two of the Web3 Secret Storage definition.
PUBLISHED: dict[str, dict[str, Any]] = {
    "pbkdf2": {
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
            "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
            "kdf": "pbkdf2",
            "kdfparams": {
                "c": 262144,
                "dklen": 32,
                "prf": "hmac-sha256",
                "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
            },
            "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
        },
        "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
        "version": 3,
    },
    "scrypt": {
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
            "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
            "kdf": "scrypt",
            "kdfparams": {
                "dklen": 32,
                "n": 262144,
                "p": 8,
                "r": 1,
                "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
            },
            "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
        },
        "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
        "version": 3,
    },
}


def made(password: str = "password") -> dict[str, Any]:
    value: dict[str, Any] = json.loads(encrypt_keystore(SECRET, password, n=N))
    return value


def opened(value: Any, password: str = "password") -> bytes:
    return decrypt_keystore(value if isinstance(value, bytes) else json.dumps(value).encode(), password)


@pytest.mark.parametrize("kdf", PUBLISHED)
def test_the_published_vectors(kdf: str) -> None:
    secret = opened(PUBLISHED[kdf], "testpassword")
    assert secret.hex() == "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"
    with pytest.raises(WrongPassword):
        opened(PUBLISHED[kdf], "testpassworD")


def test_others_read_what_is_written_here() -> None:
    data = encrypt_keystore(SECRET, "pässword ☃", n=N)
    assert Account.decrypt(json.loads(data), "pässword ☃") == SECRET
    assert address_in(data) == WalletKey(SECRET).address
    with pytest.raises(ValueError):
        Account.decrypt(json.loads(data), "password")


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_what_others_write_is_read_here(kdf: str) -> None:
    value = Account.encrypt(SECRET, "pässword", kdf=kdf, iterations=N)
    assert opened(value, "pässword") == SECRET
    with pytest.raises(WrongPassword):
        opened(value, "password")


@settings(max_examples=30, deadline=None)
@given(password=st.text(min_size=1).filter(lambda text: text.isprintable()), secret=st.binary(min_size=32, max_size=32))
def test_what_is_written_can_be_read(password: str, secret: bytes) -> None:
    try:
        WalletKey(secret)
    except IdentityError:
        with pytest.raises(KeystoreError):
            encrypt_keystore(secret, password, n=N)
        return
    data = encrypt_keystore(secret, password, n=N)
    assert decrypt_keystore(data, password) == secret
    assert secret.hex() not in data.decode()
    with pytest.raises(WrongPassword):
        decrypt_keystore(data, password + "x")


def test_the_cost_that_is_written_is_what_geth_writes() -> None:
    params = json.loads(encrypt_keystore(SECRET, "password"))["crypto"]["kdfparams"]
    assert (params["n"], params["r"], params["p"], params["dklen"]) == (262_144, 8, 1, 32)


def test_two_of_one_key_have_nothing_in_common() -> None:
    first, second = made()["crypto"], made()["crypto"]
    assert first["kdfparams"]["salt"] != second["kdfparams"]["salt"]
    assert first["cipherparams"]["iv"] != second["cipherparams"]["iv"]
    assert first["ciphertext"] != second["ciphertext"]


def test_a_password_that_is_no_text() -> None:
    """As the environment gives one that is not UTF-8; the error does not show it."""
    password = b"secret\xff".decode("utf-8", "surrogateescape")
    with pytest.raises(KeystoreError, match="not text in UTF-8") as caught:
        encrypt_keystore(SECRET, password, n=N)
    assert "secret" not in str(caught.value)
    made = encrypt_keystore(SECRET, "other", n=N)
    with pytest.raises(KeystoreError, match="not text in UTF-8") as caught:
        decrypt_keystore(made, password)
    assert "secret" not in str(caught.value)


def test_an_empty_password_protects_nothing() -> None:
    with pytest.raises(KeystoreError, match="empty"):
        encrypt_keystore(SECRET, "", n=N)


@pytest.mark.parametrize("where", ["ciphertext", "mac", "iv", "salt", "address"])
def test_a_changed_byte_is_found(where: str) -> None:
    """The checksum is over the ciphertext only, so the account is compared as well."""
    for place in range(0, 32, 5):
        value = made()
        tables = {
            "iv": value["crypto"]["cipherparams"],
            "salt": value["crypto"]["kdfparams"],
            "address": value,
        }
        table = tables.get(where, value["crypto"])
        raw = bytearray.fromhex(table[where])
        raw[place % len(raw)] ^= 1 << secrets.randbelow(8)
        table[where] = raw.hex()
        with pytest.raises(WrongPassword):
            opened(value)


def bombs() -> dict[str, dict[str, Any]]:
    return {
        "2^40 rounds of scrypt": {"n": 2**40},
        "a gigabyte by n": {"n": 2**20},
        "a gigabyte by r": {"n": 2, "r": 2**22 + 1},
        "both": {"n": 2**12, "r": 2**12},
        "work without end by p": {"n": 2**10, "r": 8, "p": 2**30},
        "no n": {"n": 0},
        "a negative n": {"n": -2},
        "n of one": {"n": 1},
        "an n that is no power of two": {"n": 3},
        "n in text": {"n": "262144"},
        "n as a fraction": {"n": 2.0},
        "n that is true": {"n": True},
        "no r": {"r": 0},
        "a huge number": {"n": 10**400},
        "a longer key": {"dklen": 2**30},
        "a shorter key": {"dklen": 16},
        "a salt of a mebibyte": {"salt": "00" * 2**10 + "00"},
        "no salt": {"salt": ""},
    }


@pytest.mark.parametrize("name", bombs())
def test_absurd_parameters_are_refused_before_they_are_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def derived(*_: Any, **__: Any) -> bytes:
        raise AssertionError("something was derived")

    value = made()
    value["crypto"]["kdfparams"] |= bombs()[name]
    monkeypatch.setattr("hashlib.scrypt", derived)
    monkeypatch.setattr("hashlib.pbkdf2_hmac", derived)
    with pytest.raises(KeystoreError):
        opened(value)


@pytest.mark.parametrize("rounds", [0, -1, 10_000_001, 2**62, 1.5, None])
def test_absurd_rounds_of_pbkdf2(rounds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def derived(*_: Any, **__: Any) -> bytes:
        raise AssertionError("something was derived")

    value: dict[str, Any] = json.loads(json.dumps(PUBLISHED["pbkdf2"]))
    value["crypto"]["kdfparams"]["c"] = rounds
    monkeypatch.setattr("hashlib.pbkdf2_hmac", derived)
    with pytest.raises(KeystoreError):
        opened(value, "testpassword")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": 4},
        {"version": True},
        {"version": None},
        {"crypto": None},
        {"crypto": []},
        {"crypto": {}},
        {"crypto": {"cipher": "aes-128-cbc"}},
        {"crypto": {"kdf": "bcrypt"}},
        {"crypto": {"kdfparams": 5}},
        {"crypto": {"cipherparams": {"iv": "00"}}},
        {"crypto": {"cipherparams": {"iv": "0 " * 16}}},
        {"crypto": {"ciphertext": "00" * 31}},
        {"crypto": {"ciphertext": "00" * 33}},
        {"crypto": {"ciphertext": "zz" * 32}},
        {"crypto": {"mac": 7}},
        {"crypto": {"mac": "00"}},
        {"address": "00" * 19},
        {"address": 7},
    ],
)
def test_files_of_another_kind(change: dict[str, Any]) -> None:
    value = made()
    for name, inner in change.items():
        value[name] = value[name] | inner if isinstance(inner, dict) and inner else inner
    with pytest.raises(KeystoreError) as caught:
        opened(value)
    assert not isinstance(caught.value, WrongPassword)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | st.text().map(str.encode))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(KeystoreError):
        decrypt_keystore(data, "password")


def test_truncated_files() -> None:
    data = encrypt_keystore(SECRET, "password", n=N)
    for length in range(0, len(data.rstrip()), 7):
        with pytest.raises(KeystoreError):
            decrypt_keystore(data[:length], "password")
    with pytest.raises(KeystoreError, match="far too large"):
        decrypt_keystore(data + b" " * 2**14, "password")
    with pytest.raises(KeystoreError):
        decrypt_keystore(b"[" * 10_000, "password")


def test_errors_hold_nothing_of_key_and_password() -> None:
    secret, password = secrets.token_bytes(32), secrets.token_hex(20)
    data = encrypt_keystore(secret, password, n=N)
    value = json.loads(data)
    value["crypto"]["mac"] = "00" * 32
    for broken, word in ((data, password + "x"), (data[:-3], password), (json.dumps(value).encode(), password)):
        with pytest.raises(KeystoreError) as caught:
            decrypt_keystore(broken, word)
        said = "".join(traceback.format_exception(caught.value))
        assert password not in said
        assert secret.hex() not in said
        assert value["crypto"]["ciphertext"] not in said
