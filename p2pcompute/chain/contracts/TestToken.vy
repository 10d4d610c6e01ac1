# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# SPDX-License-Identifier: Apache-2.0
"""
@title Test USD
@license Apache-2.0
@author p2pcompute contributors
@notice A 6-decimal ERC-20 without value, for development chains: one base unit stands for one micro-USD.
@dev The whole supply belongs to a faucet account from the first block on; nobody can mint more. As the dollar tokens
     that people use, it knows approvals (EIP-2612) and transfers (EIP-3009) by signature.
"""

from ethereum.ercs import IERC20

implements: IERC20

name: public(constant(String[8])) = "test USD"
symbol: public(constant(String[4])) = "tUSD"
decimals: public(constant(uint8)) = 6

event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)

DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
PERMIT_TYPEHASH: constant(bytes32) = keccak256(
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)
RECEIVE_TYPEHASH: constant(bytes32) = keccak256(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
# Half the order of secp256k1: signatures with a higher s are refused.
HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
nonces: public(HashMap[address, uint256])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])


@deploy
def __init__(faucet: address, supply: uint256):
    """
    @notice Give the whole supply to one account.
    @param faucet The account that hands the tokens out; not zero.
    @param supply The whole supply, in micro-USD.
    """
    assert faucet != empty(address), "faucet is zero"
    self.totalSupply = supply
    self.balanceOf[faucet] = supply
    log IERC20.Transfer(sender=empty(address), receiver=faucet, value=supply)


@internal
def _move(owner: address, receiver: address, amount: uint256):
    assert receiver != empty(address), "receiver is zero"
    assert self.balanceOf[owner] >= amount, "balance too low"
    self.balanceOf[owner] -= amount
    self.balanceOf[receiver] += amount
    log IERC20.Transfer(sender=owner, receiver=receiver, value=amount)


@external
def transfer(_to: address, _value: uint256) -> bool:
    """
    @notice Move tokens of the caller.
    @param _to Who gets them; not zero.
    @param _value How many, in micro-USD.
    @return Always True; it reverts where it cannot.
    """
    self._move(msg.sender, _to, _value)
    return True


@external
def transferFrom(_from: address, _to: address, _value: uint256) -> bool:
    """
    @notice Move tokens that their owner has approved for the caller.
    @param _from The owner.
    @param _to Who gets them; not zero.
    @param _value How many, in micro-USD. An allowance of 2**256-1 is not used up.
    @return Always True; it reverts where it cannot.
    """
    allowed: uint256 = self.allowance[_from][msg.sender]
    if allowed != max_value(uint256):
        assert allowed >= _value, "allowance too low"
        self.allowance[_from][msg.sender] = allowed - _value
    self._move(_from, _to, _value)
    return True


@external
def approve(_spender: address, _value: uint256) -> bool:
    """
    @notice Set, not add to, what another account may move out of the caller's tokens.
    @param _spender That account.
    @param _value How many, in micro-USD.
    @return Always True.
    """
    self.allowance[msg.sender][_spender] = _value
    log IERC20.Approval(owner=msg.sender, spender=_spender, value=_value)
    return True


@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256(name), keccak256("1"), chain.id, self))


@internal
@view
def _check(signer: address, struct_hash: bytes32, v: uint8, r: bytes32, s: bytes32):
    assert convert(s, uint256) <= HALF_N, "s is high"
    digest: bytes32 = keccak256(concat(x"1901", self._domain(), struct_hash))
    assert signer != empty(address) and ecrecover(digest, v, r, s) == signer, "not signed by the owner"


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @notice The EIP-712 domain of this token.
    @return keccak256 of the encoded domain: "test USD", "1", this chain, this contract.
    """
    return self._domain()


@external
def permit(owner: address, spender: address, amount: uint256, deadline: uint256, v: uint8, r: bytes32, s: bytes32):
    """
    @notice Approve on the owner's signature (EIP-2612). Anyone may submit it.
    @param owner Whose tokens these are.
    @param spender Who may move them.
    @param amount How many, in micro-USD.
    @param deadline UNIX time until which the signature is good.
    @param v The recovery bit: 27 or 28.
    @param r The first half of the signature.
    @param s Its second half, low.
    """
    assert block.timestamp <= deadline, "permit is too old"
    nonce: uint256 = self.nonces[owner]
    self._check(owner, keccak256(abi_encode(PERMIT_TYPEHASH, owner, spender, amount, nonce, deadline)), v, r, s)
    self.nonces[owner] = nonce + 1
    self.allowance[owner][spender] = amount
    log IERC20.Approval(owner=owner, spender=spender, value=amount)


@external
def receiveWithAuthorization(
    _from: address,
    _to: address,
    _value: uint256,
    _valid_after: uint256,
    _valid_before: uint256,
    _nonce: bytes32,
    _v: uint8,
    _r: bytes32,
    _s: bytes32,
):
    """
    @notice Move tokens on the owner's signature (EIP-3009); only the receiver may submit it.
    @param _from The owner, who signed.
    @param _to Who gets them: the caller.
    @param _value How many, in micro-USD.
    @param _valid_after UNIX time after which it is good.
    @param _valid_before UNIX time before which it is good.
    @param _nonce Any 32 bytes that the owner has not used.
    @param _v The recovery bit: 27 or 28.
    @param _r The first half of the signature.
    @param _s Its second half, low.
    """
    assert _to == msg.sender, "caller is not the receiver"
    assert block.timestamp > _valid_after, "not valid yet"
    assert block.timestamp < _valid_before, "not valid any more"
    assert not self.authorizationState[_from][_nonce], "authorisation is used"
    struct_hash: bytes32 = keccak256(
        abi_encode(RECEIVE_TYPEHASH, _from, _to, _value, _valid_after, _valid_before, _nonce)
    )
    self._check(_from, struct_hash, _v, _r, _s)
    self.authorizationState[_from][_nonce] = True
    log AuthorizationUsed(authorizer=_from, nonce=_nonce)
    self._move(_from, _to, _value)
