"""Web3 Secret Storage, version 3: a secret of 32 bytes under a password, as every Ethereum wallet reads and writes it.

A key is derived from the password by scrypt (RFC 7914) or PBKDF2-HMAC-SHA256 (RFC 8018). Its first half encrypts the
secret by AES-128-CTR, and Keccak-256 over its second half and the ciphertext tells a wrong password from a right one.
A file says itself how much work and memory that costs, so what it may ask for is bounded before anything is derived.

Source: the Web3 Secret Storage Definition, ethereum.org.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any, Final

from coincurve import PrivateKey

from p2pcompute.errors import IdentityError
from p2pcompute_protocols._evm import address_of_public_key, keccak256
from p2pcompute_protocols.ids import Address

__all__ = [
    "MAX_KEYSTORE_BYTES",
    "SCRYPT_N",
    "KeystoreError",
    "WrongPassword",
    "decrypt_keystore",
    "encrypt_keystore",
    "keystore_address",
]

MAX_KEYSTORE_BYTES: Final = 16 * 1024  # a file has about 500
SCRYPT_N: Final = 2**18  # what geth and others write: a quarter of a GiB, and a second or two
_SCRYPT_R: Final = 8
_MAX_SCRYPT_BYTES: Final = 2**29  # of memory, 128 n r
_MAX_SCRYPT_WORK: Final = 2**23  # n r p: four times as much as what is written
_MAX_ROUNDS: Final = 10_000_000  # of PBKDF2
_MAX_SALT_BYTES: Final = 1_024
_KEY_BYTES: Final = 32
_NOT_ONE: Final = "not a keystore file of version 3"


class KeystoreError(IdentityError):
    """A file is no keystore that can be read here: damaged, of another kind, or it asks for too much work."""


class WrongPassword(KeystoreError):
    """The password does not fit the keystore, or somebody has changed the file."""


def encrypt_keystore(secret: bytes, password: str, *, n: int = SCRYPT_N) -> bytes:
    """A keystore file for a secp256k1 secret of 32 bytes. Takes a second or two, and 1 KiB of memory for each of `n`.

    Args:
        secret: an integer in 1 … order - 1.
        password: what opens it again, as UTF-8.
        n: scrypt's cost, a power of two; less than the default is for tests.

    Raises:
        KeystoreError: the password is empty, or the secret is none.
    """
    if not password:
        raise KeystoreError("an empty password protects nothing; choose another one")
    address = _address(secret)
    salt, iv = os.urandom(32), os.urandom(16)
    derived = hashlib.scrypt(
        _encoded(password), salt=salt, n=n, r=_SCRYPT_R, p=1, dklen=_KEY_BYTES, maxmem=_maxmem(n, _SCRYPT_R, 1)
    )
    ciphertext = _aes(derived, iv, secret)
    value = {
        "address": address.hex(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": iv.hex()},
            "ciphertext": ciphertext.hex(),
            "kdf": "scrypt",
            "kdfparams": {"dklen": _KEY_BYTES, "n": n, "p": 1, "r": _SCRYPT_R, "salt": salt.hex()},
            "mac": _mac(derived, ciphertext).hex(),
        },
        "id": str(uuid.uuid4()),
        "version": 3,
    }
    return json.dumps(value).encode() + b"\n"


def decrypt_keystore(data: bytes, password: str) -> bytes:
    """The secret in a keystore file. Takes as long, and as much memory, as the file asks for, within bounds.

    Raises:
        WrongPassword: the password does not fit, or the file was changed.
        KeystoreError: it is none, or asks for more than half a GiB of memory or some seconds of work.
    """
    value = _parse(data)
    crypto = _table(value, "crypto")
    if crypto.get("cipher") != "aes-128-ctr":
        raise KeystoreError(f"{_NOT_ONE}: its cipher is not aes-128-ctr; export the key anew from where it is")
    iv = _bytes(_table(crypto, "cipherparams"), "iv", least=16, most=16)
    ciphertext = _bytes(crypto, "ciphertext", least=_KEY_BYTES, most=_KEY_BYTES)
    mac = _bytes(crypto, "mac", least=32, most=32)
    derived = _derive(crypto, _encoded(password))
    if not hmac.compare_digest(_mac(derived, ciphertext), mac):
        raise WrongPassword("the password does not fit the keystore; try again, or import a backup of the file")
    secret = _aes(derived, iv, ciphertext)
    # The checksum does not cover the iv nor the address.
    said = keystore_address(data)
    if said is not None and said != _address(secret):
        raise WrongPassword("the keystore names another account than its key has: it was changed; restore a backup")
    return secret


def keystore_address(data: bytes) -> Address | None:
    """The account that a keystore file names; None where it names none. Nothing proves it before it is decrypted.

    Raises:
        KeystoreError: it is no keystore file.
    """
    value = _parse(data)
    said = value.get("address")
    if said is None or said == "":
        return None
    if isinstance(said, str):
        said = said.removeprefix("0x")
    return Address(_bytes({"address": said}, "address", least=20, most=20))


def _encoded(password: str) -> bytes:
    try:
        return password.encode()
    except UnicodeEncodeError:  # the environment may hold any bytes
        raise KeystoreError("the password is not text in UTF-8; write it anew") from None


def _parse(data: bytes) -> Mapping[str, Any]:
    if len(data) > MAX_KEYSTORE_BYTES:
        raise KeystoreError(f"{_NOT_ONE}: it is far too large")
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        # Not what the parser says: that shows what is in the file.
        raise KeystoreError(f"{_NOT_ONE}: it is not JSON; restore it from a backup") from None
    if not isinstance(value, dict) or value.get("version") != 3 or type(value.get("version")) is not int:
        raise KeystoreError(f"{_NOT_ONE}; export the key anew from where it is")
    return value


def _table(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise KeystoreError(f"{_NOT_ONE}: {name} is missing")
    return found


def _bytes(value: Mapping[str, Any], name: str, *, least: int, most: int) -> bytes:
    found = value.get(name)
    if isinstance(found, str) and found.isascii() and 2 * least <= len(found) <= 2 * most and found.isalnum():
        try:
            return bytes.fromhex(found)
        except ValueError:
            pass
    raise KeystoreError(f"{_NOT_ONE}: {name} is not what it has to be")


def _number(value: Mapping[str, Any], name: str, most: int) -> int:
    found = value.get(name)
    if type(found) is not int or found < 1:
        raise KeystoreError(f"{_NOT_ONE}: {name} is not a positive integer")
    if found > most:
        raise KeystoreError(
            f"the keystore asks for more work or memory than any honest one ({name} is above {most}); nothing was done"
        )
    return found


def _derive(crypto: Mapping[str, Any], password: bytes) -> bytes:
    params = _table(crypto, "kdfparams")
    if params.get("dklen") != _KEY_BYTES:
        raise KeystoreError(f"{_NOT_ONE}: the derived key has not {_KEY_BYTES} bytes")
    salt = _bytes(params, "salt", least=1, most=_MAX_SALT_BYTES)
    match crypto.get("kdf"):
        case "scrypt":
            n = _number(params, "n", _MAX_SCRYPT_BYTES // 128)
            r = _number(params, "r", _MAX_SCRYPT_BYTES // 128 // n)
            p = _number(params, "p", max(1, _MAX_SCRYPT_WORK // (n * r)))
            if n < 2 or n & (n - 1):
                raise KeystoreError(f"{_NOT_ONE}: scrypt's n is not a power of two")
            if n.bit_length() > 16 * r:
                # RFC 7914 has no such pair and OpenSSL refuses it; one of the published files has it all the same.
                from Crypto.Protocol.KDF import scrypt  # hardly ever

                return bytes(scrypt(password, salt, _KEY_BYTES, n, r, p))  # type: ignore[arg-type]
            try:
                return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, dklen=_KEY_BYTES, maxmem=_maxmem(n, r, p))
            except (ValueError, MemoryError):
                raise KeystoreError("there is not enough memory here to open the keystore; free half a GiB") from None
        case "pbkdf2":
            if params.get("prf") != "hmac-sha256":
                raise KeystoreError(f"{_NOT_ONE}: its prf is not hmac-sha256")
            rounds = _number(params, "c", _MAX_ROUNDS)
            return hashlib.pbkdf2_hmac("sha256", password, salt, rounds, _KEY_BYTES)
        case _:
            raise KeystoreError(f"{_NOT_ONE}: its kdf is neither scrypt nor pbkdf2")


def _maxmem(n: int, r: int, p: int) -> int:
    return 128 * r * (n + p + 2) + 65_536


def _aes(derived: bytes, iv: bytes, data: bytes) -> bytes:
    from Crypto.Cipher import AES  # nodes that open no keystore don't load it

    cipher = AES.new(derived[:16], AES.MODE_CTR, initial_value=iv, nonce=b"")
    return bytes(cipher.encrypt(data))


def _mac(derived: bytes, ciphertext: bytes) -> bytes:
    return keccak256(derived[16:] + ciphertext)


def _address(secret: bytes) -> Address:
    try:
        return address_of_public_key(PrivateKey(secret).public_key)
    except ValueError:
        raise KeystoreError("not a secp256k1 secret: it is 0, too large or too short") from None
