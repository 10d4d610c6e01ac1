"""What a node does with stakes: its own, others' and verdicts. `Node` inherits these."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, cast

import trio

from p2pcompute import _stakes
from p2pcompute.errors import ConfigError
from p2pcompute_protocols._binding import SignerBinding, bind_signer

if TYPE_CHECKING:
    from p2pcompute.node import Node
    from p2pcompute.stake import Arbiter, Slashed, StakeService, Staking

__all__ = ["NodeStakes"]

_CARD_MS: Final = 30 * 24 * 3_600_000  # a task of seven days shows an arbiter's card to whoever joins it


class NodeStakes:
    """The part of a node that is about stakes."""

    stake_service: StakeService | None = None

    async def staking(self) -> Staking:
        """This node's account at the stake registry: status, stake, unstake.

        Raises:
            ConfigError, chain.NoRegistry, chain.WrongRegistry, ChainError: there is no registry to be had.
        """
        services = cast("Node", self).services
        return await _stakes.make_staking(services.stake, services.hub, services.outbox)

    async def accuse(self, evidence: str | Path, other: str | Path | None = None) -> Slashed:
        """Have a liar's stake taken: the arbiters that the agreement names judge, and the registry carries it out.
        From then on the liar gets no work of this node.

        Args:
            evidence: a file that was kept when a liar was caught (`LiarCaught.evidence`), with the pledge beside it;
                or a receipt for the registry (``.p2preceipt``).
            other: the pledge, where it lies elsewhere; of a receipt the one that contradicts it.

        Raises:
            EvidenceError: a file is none, or proves nothing.
            stake.NoVerdict: too few arbiters find the provider wrong.
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.

        Cancellation: nothing was sent to the chain, or what was sent is mined.
        """
        second = None if other is None else Path(other)
        return await _stakes.accuse(cast("Node", self), Path(evidence), second)

    async def arbitrate(
        self,
        *,
        allow_unsandboxed: bool = False,
        on_verdict: Callable[[bytes, str, str], None] | None = None,
        task_status: trio.TaskStatus[Arbiter] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Be an arbiter until cancelled: judge evidence of tasks that name this node, in a locked worker, and sign what
        was found. Verdicts count while this node's account has a stake. With whom it finds wrong, provider or accuser,
        this node deals no more.

        Args:
            allow_unsandboxed: run strangers' kernels although this kernel has neither Landlock nor seccomp.
            on_verdict: gets the task's ID, who was found wrong ("provider", "accuser" or "undecided"), and why; must
                not block.

        Raises:
            ConfigError: it is one already, or there is no stake registry. ChainError: the endpoint.
            SandboxError: strangers' kernels can't be locked in here.
            LedgerFailed: the disk failed; restart the node.
        """
        from p2pcompute.stake import Arbiter

        node = cast("Node", self)
        services, service = node.services, _stakes.stake_service(node)
        if services.stake is None:
            raise ConfigError("this node knows no stake registry: stakes are on a real chain only")
        await services.stake.registry()
        await node._worker_pool(0, allow_unsandboxed)
        if service.arbiter is not None:  # nothing is waited for between this and taking the place
            raise ConfigError("this node is an arbiter already")

        def bind() -> SignerBinding:
            # By the account itself, which is another key than the one that signs vouchers where there is an owner.
            now = node.now_ms()
            return bind_signer(
                node.network, services.key.peer_id, services.account, sequence=now, expires_ms=now + _CARD_MS
            )

        service.arbiter = Arbiter(
            registry=services.stake.registry,
            account=services.account,
            signer=services.key,
            binding=bind,
            network=node.network,
            now_ms=node.now_ms,
            workers=partial(node._worker_pool, 0, allow_unsandboxed),
            convict=services.books.convicted,
            on_verdict=on_verdict,
        )
        try:
            task_status.started(service.arbiter)
            await services.ledger.wait_failed()
        finally:
            service.arbiter = None
        raise AssertionError("unreachable")
