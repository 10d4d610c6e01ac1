# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# SPDX-License-Identifier: Apache-2.0
"""
@title Quiet token
@license Apache-2.0
@author p2pcompute contributors
@notice A token of the kind that was written before transfers gave an answer: it reverts, or says nothing. For tests
        only.
"""

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])


@external
def mint(to: address, amount: uint256):
    """
    @notice Make tokens.
    @param to Who gets them.
    @param amount How many.
    """
    self.balanceOf[to] += amount


@external
def transfer(to: address, amount: uint256):
    """
    @notice Move tokens of the caller.
    @param to Who gets them.
    @param amount How many.
    """
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[to] += amount


@external
def transferFrom(owner: address, to: address, amount: uint256):
    """
    @notice Move tokens that their owner has approved for the caller.
    @param owner Whose.
    @param to Who gets them.
    @param amount How many.
    """
    self.allowance[owner][msg.sender] -= amount
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount


@external
def approve(spender: address, amount: uint256):
    """
    @notice Set what another account may move.
    @param spender That account.
    @param amount How many.
    """
    self.allowance[msg.sender][spender] = amount
