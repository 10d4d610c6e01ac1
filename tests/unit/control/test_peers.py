"""What `/peers` says: who is there, how far away, what they sell and what was had of them."""

from __future__ import annotations

import json

import trio

from p2pcompute.control._peers import FRESH_S, PeerWatch
from p2pcompute.overlay import PING_PROTOCOL, OverlayStream
from p2pcompute_protocols import task

from ..market._harness import Market, compute, in_memory


def test_both_ends_of_a_task_see_each_other() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        assert (await PeerWatch(requester).peers())["peers"][0]["standing"] is None
        await compute(requester, chunks=4)
        said = json.loads(json.dumps(await PeerWatch(requester).peers()))
        assert said["peer_count"] == 1
        [row] = said["peers"]
        assert row["peer"] == provider.peer_id
        assert (row["direction"], row["roles"]) == ("out", ["provider"])
        assert row["address"].startswith("10.")
        assert row["price_pusd"] == provider.provider.price_pusd  # type: ignore[union-attr]
        assert row["rtt_ms"] > 0
        assert task.PROTOCOL_ID in row["protocols"]
        assert row["bytes_out"] > 0
        assert row["standing"]["earned_from_us_uusd"] > 0
        [there] = (await PeerWatch(provider).peers())["peers"]
        assert (there["peer"], there["direction"]) == (requester.peer_id, "in")
        assert "customer" in there["roles"]
        assert there["price_pusd"] is None
        assert there["bytes_in"] == row["bytes_out"] + 32, "and the ping from here"

    in_memory(scenario)


def test_the_banned_are_listed_with_the_reason() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        await requester.services.ledger.ban(provider.peer_id, reason="lied")
        said = await PeerWatch(requester).peers()
        assert said["banned"] == [{"peer": provider.peer_id, "reason": "lied"}]
        assert said["peers"][0]["standing"]["banned"] == "lied"
        await requester.services.overlay.disconnect(provider.peer_id)
        said = await PeerWatch(requester).peers()
        assert (said["peers"], len(said["banned"])) == ([], 1)

    in_memory(scenario)


def test_peers_are_pinged_once_in_a_while_and_hold_nothing_up() -> None:
    async def scenario(market: Market) -> None:
        node, quick, mute = [await market.node() for _ in range(3)]
        pings = 0

        async def answer(stream: OverlayStream) -> None:
            nonlocal pings
            pings += 1
            while data := await stream.receive_some():
                await stream.send_all(data)

        async def say_nothing(stream: OverlayStream) -> None:
            await stream.receive_some()
            await trio.sleep_forever()

        quick.services.overlay.handle(PING_PROTOCOL, answer)
        mute.services.overlay.handle(PING_PROTOCOL, say_nothing)
        for other in (quick, mute):
            await node.services.overlay.connect(other.addresses[0])
        watch = PeerWatch(node)
        begun_s = trio.current_time()
        for _ in range(5):
            rows = {row["peer"]: row for row in (await watch.peers())["peers"]}
        assert trio.current_time() - begun_s < 2, "one answer waits for a mute peer, and the next ones do not"
        assert rows[quick.peer_id]["rtt_ms"] > 0
        assert rows[mute.peer_id]["rtt_ms"] is None
        assert pings == 1
        await trio.sleep(FRESH_S)
        await watch.peers()
        assert pings == 2
        await watch.peers(ping=False)
        assert pings == 2

    in_memory(scenario)
