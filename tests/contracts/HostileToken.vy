# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# SPDX-License-Identifier: Apache-2.0
"""
@title Hostile token
@license Apache-2.0
@author p2pcompute contributors
@notice What a token can do to a contract that holds it: take a cut, say no without reverting, refuse an account, call
        back in the middle of a transfer, and take any call that it does not know for done. For tests only.
"""

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
cut_bps: public(uint256)
lies: public(bool)
blocked: public(HashMap[address, bool])
hook_to: address
hook_data: Bytes[1024]
hook_worked: public(bool)
hook_called: public(bool)


@external
@payable
def __default__():
    """
    @notice Do nothing and say nothing, as tokens with a fallback do: a permit "succeeds".
    """
    pass


@external
def mint(to: address, amount: uint256):
    """
    @notice Make tokens.
    @param to Who gets them.
    @param amount How many.
    """
    self.balanceOf[to] += amount


@external
def set_cut(bps: uint256):
    """
    @notice From now on a transfer loses this much of itself.
    @param bps In hundredths of a percent.
    """
    self.cut_bps = bps


@external
def set_lies(lies: bool):
    """
    @notice From now on transfers move nothing and answer False.
    @param lies Whether.
    """
    self.lies = lies


@external
def block_account(account: address, blocked: bool):
    """
    @notice From now on nothing goes to or from an account.
    @param account Which.
    @param blocked Whether.
    """
    self.blocked[account] = blocked


@external
def set_hook(to: address, data: Bytes[1024]):
    """
    @notice From now on this is called once, in the middle of a transfer.
    @param to Whom to call.
    @param data With what.
    """
    self.hook_to = to
    self.hook_data = data


@internal
def _move(owner: address, to: address, amount: uint256) -> bool:
    if self.lies:
        return False
    assert not self.blocked[owner] and not self.blocked[to], "blocked"
    self.balanceOf[owner] -= amount
    if self.hook_to != empty(address):
        target: address = self.hook_to
        self.hook_to = empty(address)
        self.hook_called = True
        self.hook_worked = raw_call(target, self.hook_data, revert_on_failure=False)
    self.balanceOf[to] += amount - amount * self.cut_bps // 10_000
    return True


@external
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Move tokens of the caller.
    @param to Who gets them.
    @param amount How many.
    @return Whether it did.
    """
    return self._move(msg.sender, to, amount)


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    """
    @notice Move tokens that their owner has approved for the caller.
    @param owner Whose.
    @param to Who gets them.
    @param amount How many.
    @return Whether it did.
    """
    self.allowance[owner][msg.sender] -= amount
    return self._move(owner, to, amount)


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Set what another account may move.
    @param spender That account.
    @param amount How many.
    @return True.
    """
    self.allowance[msg.sender][spender] = amount
    return True
