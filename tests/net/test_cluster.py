"""Processes of a cluster: started, watched, ended; none outlives its owner. Small programs stand in for nodes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from p2pcompute_testnet._cluster import Cluster, NodeSpec, NodeStartError, open_cluster

pytestmark = pytest.mark.net

READY = """
import json, os, signal, subprocess, sys, time
def say(**event): print(json.dumps(event), flush=True)
name = sys.argv[sys.argv.index("--profile") + 1]
def ready(**more): say(event="ready", peer_id="12D3KooW" + name, addresses=[], **more)
"""
POLITE = (
    READY
    + """
def stop(*_):
    say(event="checkpoint", channels=1, claimed_uusd=5)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("no JSON", flush=True)  # before it is ready: after that it may be stopped at any moment
ready(home=os.environ["P2PCOMPUTE_HOME"], theirs=os.environ.get("P2PCOMPUTE_CHAIN"), options=sys.argv[1:])
while True: time.sleep(60)
"""
)
STUBBORN = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready()\nwhile True: time.sleep(60)\n"
PARENT = READY + "ready(child=subprocess.Popen(['sleep', '60']).pid)\nwhile True: time.sleep(60)\n"
BROKEN = "import sys; sys.stderr.write('the port is taken\\n'); sys.exit(3)"
MIXED = f"import sys\nexec({BROKEN!r} if 'bad' in sys.argv else {POLITE!r})"


def program(text: str) -> Sequence[str]:
    return (sys.executable, "-c", text)


def in_cluster(directory: Path, text: str, body: Callable[[Cluster], object]) -> None:
    async def main() -> None:
        async with open_cluster(
            directory, chain_url="http://127.0.0.1:1", network="some", command=program(text), grace_s=2
        ) as cluster:
            await body(cluster)  # type: ignore[misc]

    trio.run(main)


def wait_gone(pidfd: int, timeout_s: float) -> bool:
    watched = select.poll()
    watched.register(pidfd, select.POLLIN)
    return bool(watched.poll(timeout_s * 1000))


def test_a_node_says_what_it_is_and_ends_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_CHAIN", "http://elsewhere")

    async def body(cluster: Cluster) -> None:
        one, other = await cluster.start(
            [NodeSpec(name="one", price="0.9 USD"), NodeSpec(name="other", fault="lie:0.5")], bootstrap=["/ip4/x"]
        )
        assert one.peer_id == "12D3KooWone"
        assert one.facts["home"] == str(tmp_path / "one")
        assert one.facts["theirs"] is None, "another network's settings reached a node"
        assert "--fault" not in one.facts["options"]
        given = " ".join(other.facts["options"])
        for wanted in (
            "--json",
            "--network some",
            "--chain http://127.0.0.1:1",
            "--fault lie:0.5",
            "--bootstrap /ip4/x",
        ):
            assert wanted in given
        await cluster.stop(300)
        await one.wait_gone()
        assert one.exit_code == 0
        assert one.events == [{"event": "checkpoint", "channels": 1, "claimed_uusd": 5}]
        assert "no JSON" in one.log.read_text()

    in_cluster(tmp_path, POLITE, body)


def test_a_node_that_does_not_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    pids: list[int] = []

    async def body(cluster: Cluster) -> None:
        try:
            await cluster.start([NodeSpec(name="good"), NodeSpec(name="bad")])
        finally:
            pids.extend(os.pidfd_open(node.process.pid) for node in cluster.nodes if node.exit_code is None)

    with pytest.raises(NodeStartError, match=r"(?s)bad ended before it was ready.*the port is taken"):
        in_cluster(tmp_path, MIXED, body)
    assert all(wait_gone(fd, 0) for fd in pids), "the good one was left behind"
    for fd in pids:
        os.close(fd)


def test_a_node_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    async def body(cluster: Cluster) -> None:
        (node,) = await cluster.start([NodeSpec(name="stubborn")])
        await node.stop(grace_s=0.1)
        assert node.exit_code == -signal.SIGKILL

    in_cluster(tmp_path, STUBBORN, body)


def test_killing_a_node_takes_its_group_along(tmp_path: Path) -> None:
    async def body(cluster: Cluster) -> None:
        (node,) = await cluster.start([NodeSpec(name="parent")])
        child = os.pidfd_open(node.facts["child"])
        node.kill()
        await node.wait_gone()
        assert node.killed
        assert node.exit_code == -signal.SIGKILL
        assert wait_gone(child, 10)
        os.close(child)

    in_cluster(tmp_path, PARENT, body)


OWNER = """
import sys, trio
from pathlib import Path
from p2pcompute_testnet._cluster import NodeSpec, open_cluster
async def main():
    command = (sys.executable, "-c", sys.argv[2])
    async with open_cluster(Path(sys.argv[1]), chain_url="", command=command) as cluster:
        (node,) = await cluster.start([NodeSpec(name="held")])
        print(node.process.pid, node.facts["child"], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
CARELESS = """
import subprocess, sys, time
node = subprocess.Popen([sys.executable, "-c", sys.argv[2], "--profile", "held"], stdin=subprocess.PIPE,
    stdout=subprocess.PIPE, start_new_session=True)
import json
print(node.pid, json.loads(node.stdout.readline())["child"], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("leashed", [True, False])
def test_no_node_outlives_an_owner_that_is_killed(tmp_path: Path, leashed: bool) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER if leashed else CARELESS, str(tmp_path), PARENT], stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    node, child = map(int, owner.stdout.readline().split())
    watched = [os.pidfd_open(node), os.pidfd_open(child)]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    try:
        if leashed:
            assert all(wait_gone(fd, 10) for fd in watched)
        else:  # what the leash is for: nobody else would end them
            assert not any(wait_gone(fd, 0.5) for fd in watched)
    finally:
        for fd in watched:
            if not wait_gone(fd, 0):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)


def test_the_log_of_a_restarted_node_goes_on(tmp_path: Path) -> None:
    async def body(cluster: Cluster) -> None:
        (node,) = await cluster.start([NodeSpec(name="again")])
        node.kill()
        await node.wait_gone()
        again = await cluster.launch(NodeSpec(name="again"))
        await again.wait_ready()
        assert again.home == node.home
        assert [n.process.pid for n in cluster.nodes] == [again.process.pid]
        events = [json.loads(line) for line in again.log.read_text().splitlines() if line.startswith("{")]
        assert [event["event"] for event in events] == ["ready", "ready"]

    in_cluster(tmp_path, POLITE, body)


def test_a_held_node_still_ends_in_order(tmp_path: Path) -> None:
    async def body(cluster: Cluster) -> None:
        (node,) = await cluster.start([NodeSpec(name="asleep")])
        node.hold()
        await node.stop(10)
        assert node.exit_code == 0

    in_cluster(tmp_path, POLITE, body)
