"""A payee's view of an endpoint that lies, lags or keeps silent, and transactions that it never settles."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.chain import (
    ChainClient,
    HeadOutOfLine,
    HubClient,
    NoGas,
    UnsignedTx,
    decode_transaction,
    encode_epoch,
    sign_transaction,
)
from p2pcompute.errors import RpcError, StorageError, TransactionFailed
from p2pcompute.payments import PUBLIC_CHAIN, Approve, ChainHub, Outbox, SettlementPending
from p2pcompute.storage import InlineExecutor, open_ledger
from p2pcompute_protocols.ids import Address, ChannelId
from p2pcompute_protocols.money import ChainTerms

HUB, TOKEN, CHANNEL = Address(b"h" * 20), Address(b"t" * 20), ChannelId(bytes(32))
NOW_S = 1_900_000_000
GWEI = 10**9


class Node:
    """An endpoint that answers as a test wants it to."""

    def __init__(self) -> None:
        self.head = 100
        self.age_s = 0
        self.base_wei = GWEI
        self.channels: dict[int, tuple[int, int, int]] = {}  # from a block on
        self.closed: list[int] = []  # blocks in which the channel was
        self.hub_since = 0
        self.receipts: dict[str, Any] = {}
        self.nonce = 0
        self.sent: list[bytes] = []
        self.refuse: RpcError | None = None
        self.lacks: set[str] = set()
        self.batches = True

    def answer(self, method: str, params: list[Any]) -> Any:
        if method in self.lacks:
            raise RpcError("the method does not exist", code=-32601)
        match method:
            case "eth_gasPrice":
                return hex(self.base_wei + 7)
            case "eth_chainId":
                return "0x5"
            case "eth_blockNumber":
                return hex(self.head)
            case "eth_getBlockByNumber":
                return {
                    "number": hex(self.head),
                    "timestamp": hex(NOW_S - self.age_s),
                    "baseFeePerGas": hex(self.base_wei),
                }
            case "eth_maxPriorityFeePerGas":
                return hex(GWEI)
            case "eth_feeHistory":
                return {"baseFeePerGas": [hex(GWEI)] * 100 + [hex(self.base_wei)]}
            case "eth_call":
                number = self.head if params[1] == "latest" else int(params[1], 16)
                if params[0]["data"] == "0x" + encode_epoch(CHANNEL).hex():
                    if number < self.hub_since:
                        return "0x"
                    return "0x" + sum(block <= number for block in self.closed).to_bytes(32, "big").hex()
                state = next((self.channels[n] for n in sorted(self.channels, reverse=True) if n <= number), (0, 0, 0))
                return "0x" + "".join(value.to_bytes(32, "big").hex() for value in state)
            case "eth_getTransactionReceipt":
                return self.receipts.get(params[0])
            case "eth_getTransactionCount":
                return hex(self.nonce)
            case "eth_getTransactionByHash":
                return None
            case "eth_estimateGas":
                return hex(50_000)
            case "eth_sendRawTransaction":
                if self.refuse is not None:
                    raise self.refuse
                self.sent.append(bytes.fromhex(params[0][2:]))
                return "0x"
        raise AssertionError(method)

    async def exchange(self, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()

        def one(request: dict[str, Any]) -> dict[str, Any]:
            head = {"jsonrpc": "2.0", "id": request["id"]}
            try:
                return head | {"result": self.answer(request["method"], request["params"])}
            except RpcError as exc:
                return head | {"error": {"code": exc.code, "message": str(exc)}}

        message = json.loads(body)
        if isinstance(message, list) and not self.batches:
            return b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batches are not taken"}}'
        return json.dumps([one(r) for r in message] if isinstance(message, list) else one(message)).encode()

    def mined(self, raw: bytes, block: int, *, ok: bool = True) -> None:
        from p2pcompute.chain import transaction_hash

        self.receipts["0x" + transaction_hash(raw).hex()] = {
            "logs": [],
            "gasUsed": "0x1",
            "blockNumber": hex(block),
            "status": hex(ok),
            "effectiveGasPrice": "0x1",
        }


def with_hub(body: Callable[[Node, ChainHub], Any]) -> None:
    async def main() -> None:
        node = Node()
        async with ChainClient("test", exchange=node.exchange) as rpc:
            terms = ChainTerms(chain_id=5, hub=HUB, token=TOKEN, decimals=6)
            hub = ChainHub(
                HubClient(rpc, HUB, TOKEN),
                terms=terms,
                private_key=b"k" * 32,
                confirmations=PUBLIC_CHAIN,
                free_gas=False,
                clock_ms=lambda: NOW_S * 1000,
            )
            await body(node, hub)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_head_that_stands_still_is_not_believed() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        node.age_s = 900
        assert (await hub.confirmed_channel(CHANNEL)).deposit_uusd == 0
        node.age_s = 901
        with pytest.raises(HeadOutOfLine, match="901 s old"):
            await hub.confirmed_channel(CHANNEL)

    with_hub(body)


def test_a_head_that_falls_back_is_not_believed() -> None:
    """A reorganisation leaves the head about where it was; an endpoint that is behind would hide a request to close."""

    async def body(node: Node, hub: ChainHub) -> None:
        node.head = 1_000
        await hub.confirmed_channel(CHANNEL)
        node.head = 936
        await hub.confirmed_channel(CHANNEL)
        node.head = 935
        with pytest.raises(HeadOutOfLine, match="has shown 1000 before"):
            await hub.confirmed_channel(CHANNEL)
        node.head = 1_001
        await hub.confirmed_channel(CHANNEL)

    with_hub(body)


def test_a_deposit_counts_by_its_depth_and_a_request_to_close_at_once() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        node.channels = {0: (0, 0, 0), 100: (20_000_000, 0, 7)}
        counted = []
        for node.head in range(100, 113):
            state = await hub.confirmed_channel(CHANNEL)
            assert state.close_at_s == 7
            counted.append(state.deposit_uusd)
        assert counted == [50_000] * 12 + [20_000_000]
        assert (await hub.channel(CHANNEL)).deposit_uusd == 20_000_000  # as its payer sees it

    with_hub(body)


def test_a_closing_counts_by_its_depth() -> None:
    """For the payee, that is: a consent that a reorganisation makes good again must not meet new vouchers."""

    async def body(node: Node, hub: ChainHub) -> None:
        node.closed = [100]
        counted = []
        for node.head in range(99, 114):
            counted.append((await hub.epoch(CHANNEL), await hub.confirmed_epoch(CHANNEL)))
        assert counted == [(0, 0)] + [(1, 0)] * 12 + [(1, 1)] * 2
        node.hub_since = 105  # of which there was nothing a few blocks ago
        assert await hub.confirmed_epoch(CHANNEL) == 0
        node.age_s = 901
        with pytest.raises(HeadOutOfLine):
            await hub.confirmed_epoch(CHANNEL)

    with_hub(body)


def test_a_deposit_that_was_there_and_is_gone_does_not_count() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        node.channels = {0: (20_000_000, 0, 0), 99: (3_000_000, 3_000_000, 0)}  # claimed in part, and closed
        state = await hub.confirmed_channel(CHANNEL)
        assert (state.deposit_uusd, state.claimed_uusd) == (3_000_000, 3_000_000)

    with_hub(body)


def test_receipts_that_stay_null_for_ever_use_no_second_nonce() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        async with open_ledger(None, executor=InlineExecutor()) as ledger:
            outbox = Outbox(ledger=ledger, hub=hub)
            for _ in range(3):
                with pytest.raises(SettlementPending, match="is sent again"):
                    await outbox.run(Approve(amount_uusd=1))
            assert len(set(node.sent)) == 1
            assert len(node.sent) > 3  # while it waits as well
            (waiting,) = await ledger.unsettled(hub.account)
            assert (waiting.nonce, waiting.raw) == (0, node.sent[0])

    with_hub(body)


def test_a_transaction_counts_as_settled_once_it_is_deep() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        async with open_ledger(None, executor=InlineExecutor()) as ledger:
            outbox = Outbox(ledger=ledger, hub=hub)
            with pytest.raises(SettlementPending):
                await outbox.run(Approve(amount_uusd=1))
            raw = node.sent[0]
            node.sent.clear()
            node.mined(raw, 100)
            assert await outbox.look() == 1
            # What comes next does not wait for it, and takes the next nonce.
            node.nonce = 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.run, Approve(amount_uusd=2))
                while not node.sent:
                    await trio.lowlevel.checkpoint()
                node.mined(node.sent[0], 100)
            assert decode_transaction(node.sent[0]).nonce == 1
            # The chain takes both back: both are sent again, in order, as they were.
            node.receipts.clear()
            second = node.sent.pop()
            node.nonce = 0
            assert await outbox.look() == 2
            assert node.sent == [raw, second]
            for sent in (raw, second):
                node.mined(sent, 101)
            node.head = 112  # a reorganisation of twelve blocks takes block 101 with it
            assert await outbox.look() == 2
            node.head = 113
            assert await outbox.look() == 0

    with_hub(body)


def test_a_transaction_is_outbid_only_where_it_pays_too_little() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        sign = await hub.signing(Approve(amount_uusd=1))
        _, raw = sign(0)
        assert decode_transaction(raw).max_fee_wei == 3 * GWEI
        assert await hub.raised(raw) is None
        node.base_wei = 2 * GWEI
        assert await hub.raised(raw) is None
        node.base_wei = 2 * GWEI + 1
        higher = await hub.raised(raw)
        assert higher is not None
        old, new = decode_transaction(raw), decode_transaction(higher[1])
        assert new.max_fee_wei >= 2 * node.base_wei
        assert new.priority_fee_wei * 100 >= old.priority_fee_wei * 112  # what nodes ask of a second one
        assert (new.nonce, new.to, new.data, new.gas, new.value_wei) == (old.nonce, old.to, old.data, old.gas, 0)

    with_hub(body)


def test_what_the_endpoint_does_not_keep_yet_is_no_error() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        async with open_ledger(None, executor=InlineExecutor()) as ledger:
            outbox = Outbox(ledger=ledger, hub=hub)
            node.refuse = RpcError("max fee per gas less than block base fee", code=-32000)
            with pytest.raises(SettlementPending):
                await outbox.run(Approve(amount_uusd=1))
            node.refuse = RpcError("nonce too low", code=-32000)
            with pytest.raises(TransactionFailed):
                await hub.send(b"\x02other")
            node.refuse = RpcError("insufficient funds for gas * price + value", code=-32000)
            with pytest.raises(NoGas, match=f"the account 0x{hub.account.hex()} has too little"):
                await outbox.look()
            node.refuse = RpcError("txpool is full", code=-32000)
            with pytest.raises(RpcError, match="txpool is full"):
                await outbox.look()

    with_hub(body)


def test_nodes_that_lack_newer_calls() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        node.lacks = {"eth_maxPriorityFeePerGas", "eth_feeHistory"}
        sign = await hub.signing(Approve(amount_uusd=1))
        tx = decode_transaction(sign(0)[1])
        assert (tx.max_fee_wei, tx.priority_fee_wei) == (2 * GWEI + 7, 7)
        quote = await hub.gas_quote()
        assert quote is not None
        assert (quote.fee_wei, quote.usual_wei) == (GWEI + 7, GWEI + 7)

    with_hub(body)


def test_nodes_that_take_no_batches() -> None:
    async def body(node: Node, hub: ChainHub) -> None:
        node.batches = False
        node.channels = {0: (7, 3, 1)}
        state = await hub.confirmed_channel(CHANNEL)
        assert (state.deposit_uusd, state.claimed_uusd, state.close_at_s) == (7, 3, 1)
        assert await hub.gas_quote() is not None
        node.lacks = {"eth_getBlockByNumber"}  # an error of one request is not one of the batch
        with pytest.raises(RpcError, match="does not exist"):
            await hub.confirmed_channel(CHANNEL)

    with_hub(body)


def test_replacing_is_for_what_is_not_settled() -> None:
    async def main() -> None:
        async with open_ledger(None, executor=InlineExecutor()) as ledger:
            sender = Address(b"s" * 20)
            rows = [(CHANNEL, 5)]
            first = await ledger.queue_tx(
                sender, kind="claim", chain_nonce=3, sign=lambda n: (b"1" * 32, b"one"), rows=rows
            )
            second = await ledger.replace_tx(first.id, tx_hash=b"2" * 32, raw=b"two")
            third = await ledger.replace_tx(second.id, tx_hash=b"3" * 32, raw=b"three")
            assert (third.nonce, third.kind, list(third.rows)) == (3, "claim", rows)
            assert await ledger.unsettled(sender) == [third]
            assert await ledger.replaced_hashes(third.id) == [b"2" * 32, b"1" * 32]
            assert await ledger.replaced_hashes(first.id) == []
            with pytest.raises(StorageError, match="is settled"):
                await ledger.replace_tx(first.id, tx_hash=b"4" * 32, raw=b"four")
            assert [row.id for row in await ledger.of_kind(sender, "claim")] == [third.id, second.id, first.id]
            assert await ledger.of_kind(sender, "fund") == []
            assert await ledger.bound_chain() is None
            await ledger.verify(full=True)

    trio.run(main)


@pytest.mark.parametrize("to", [None, HUB])
def test_what_was_signed_is_read_back(to: Address | None) -> None:
    import coincurve

    for size in (0, 1, 55, 56, 300, 70_000):
        tx = UnsignedTx(
            chain_id=10**9, nonce=0, to=to, data=b"\x05" * size, gas=21_000, max_fee_wei=2**70, priority_fee_wei=0
        )
        raw = sign_transaction(tx, coincurve.PrivateKey(b"k" * 32)).raw
        assert decode_transaction(raw) == tx
        for broken in (raw[:-1], raw + b"\0", raw[1:], b"", b"\x02", b"\x02\xf8", raw[:40]):
            with pytest.raises(ValueError, match=r"not a signed|in the middle"):
                decode_transaction(broken)
