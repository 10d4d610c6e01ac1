# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# SPDX-License-Identifier: Apache-2.0
"""
@title Test USD
@license Apache-2.0
@author p2pcompute contributors
@notice A 6-decimal ERC-20 without value, for development chains: one base unit stands for one micro-USD.
@dev The whole supply belongs to a faucet account from the first block on; nobody can mint more.
"""

from ethereum.ercs import IERC20

implements: IERC20

name: public(constant(String[8])) = "test USD"
symbol: public(constant(String[4])) = "tUSD"
decimals: public(constant(uint8)) = 6

totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])


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
