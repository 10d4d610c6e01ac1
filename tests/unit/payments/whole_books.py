"""What the hub's events come to, held against what it says of itself. The invariants are numbered in
docs/contracts.md: H1 solvency, H2 claimed <= deposit, H3 claimed never falls, H4 conservation, H5 and H6 who may
close, H7 a row of a batch changes its own channel only."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from p2pcompute.chain._hub import decode_channel, decode_word, encode_balance_of, encode_balances, encode_channel
from p2pcompute_protocols._evm import keccak256
from p2pcompute_protocols.ids import Address, ChannelId

__all__ = ["CLOSE_DELAY_S", "Books"]

CLOSE_DELAY_S = 86_400
_TOPICS = {
    keccak256(signature.encode()): signature.split("(")[0]
    for signature in (
        "Deposited(address,address,uint256)",
        "Withdrawn(address,address,uint256)",
        "Funded(bytes32,address,address,address,uint256)",
        "Claimed(bytes32,address,uint256,uint256,bytes32)",
        "Checkpoint(address,uint256,uint256)",
        "CloseRequested(bytes32,address,uint256)",
        "Closed(bytes32,address,address,uint256)",
    )
}


class Books:
    """A hub's events, added up by rules of our own; each of them has to be one that the rules allow.

    Args:
        node: a `ForkNode`.
        most: by channel, the highest voucher that its signer has ever signed.
    """

    def __init__(self, node: Any, most: dict[ChannelId, int]) -> None:
        self.free: dict[bytes, int] = defaultdict(int)
        self.brought: dict[bytes, int] = defaultdict(int)
        self.deposit: dict[bytes, int] = defaultdict(int)
        self.claimed: dict[bytes, int] = defaultdict(int)
        self.close_at_s: dict[bytes, int] = defaultdict(int)
        self.closings = self.requests = self.skipped = 0
        chain = node.chain
        credited = 0
        for log in chain.logs(0, chain.head):
            if log.address != node.hub:
                continue
            words = [int.from_bytes(log.data[i : i + 32], "big") for i in range(0, len(log.data), 32)]
            topics, now_s = log.topics, chain.header(log.block).timestamp
            sender = chain.mined(log.tx_hash).sender
            one = topics[1]
            match _TOPICS[topics[0]]:
                case "Deposited":
                    self.free[topics[2][12:]] += words[0]
                    self.brought[topics[2][12:]] += words[0]
                case "Withdrawn":
                    assert one[12:] == sender
                    self._take(sender, words[0])
                case "Funded":
                    assert topics[2][12:] == sender
                    self._take(sender, words[1] - self.deposit[one])
                    self.deposit[one], self.close_at_s[one] = words[1], 0
                case "Claimed":
                    gained, total = words[0], words[1]
                    assert total - self.claimed[one] == gained > 0, "H3: claimed never falls"
                    assert total <= self.deposit[one], "H2: no more is claimed than is there"
                    assert total <= most.get(ChannelId(one), 0), "H7: no more than its signer has signed"
                    self.claimed[one] = total
                    self.free[topics[2][12:]] += gained
                    credited += gained
                case "Checkpoint":
                    assert words[0] == credited, "H7: a batch credits what its rows do"
                    self.skipped += words[1].bit_count()
                    credited = 0
                case "CloseRequested":
                    assert words[0] == now_s + CLOSE_DELAY_S
                    assert not self.close_at_s[one], "H6: the clock is not wound back"
                    self.close_at_s[one] = words[0]
                    self.requests += 1
                case "Closed":
                    # Nobody here signs a consent, so none is good: H5.
                    due = 0 < self.close_at_s[one] <= now_s
                    assert due or topics[3][12:] == sender, "H6: nobody else closes that"
                    assert words[0] == self.deposit[one] - self.claimed[one]
                    self.free[topics[2][12:]] += words[0]
                    self.deposit[one], self.close_at_s[one] = self.claimed[one], 0
                    self.closings += 1
                case name:
                    raise AssertionError(name)
        self.compare(node)

    def _take(self, owner: bytes, amount: int) -> None:
        assert 0 <= amount <= self.free[owner], "H4: nobody spends what is not there"
        self.free[owner] -= amount

    def compare(self, node: Any) -> None:
        """What the hub says now, and the tokens that it holds."""
        for owner, amount in self.free.items():
            assert decode_word(node.call(node.hub, encode_balances(Address(owner)))) == amount
        for channel, deposit in self.deposit.items():
            state = decode_channel(node.call(node.hub, encode_channel(ChannelId(channel))))
            said = (state.deposit_uusd, state.claimed_uusd, state.close_at_s)
            assert said == (deposit, self.claimed[channel], self.close_at_s[channel]), "the events say all of a channel"
        held = decode_word(node.call(node.token, encode_balance_of(node.hub)))
        assert held == self.in_all, "H1: what is owed is there, and H4: nothing else"

    @property
    def money(self) -> dict[bytes, int]:
        """Free balances of those that have any."""
        return {owner: amount for owner, amount in self.free.items() if amount}

    @property
    def in_all(self) -> int:
        """What the hub owes."""
        return sum(self.free.values()) + sum(self.deposit.values()) - sum(self.claimed.values())
