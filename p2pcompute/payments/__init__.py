"""Payment channels: paying, being paid, credit for strangers, and the checkpoint on chain.

Knows the ledger, the hub and streams only by the interfaces of `_api.py`. `docs/guarantees.md` says what is on disk
before what leaves the process.
"""

from __future__ import annotations

from ._api import Approve as Approve
from ._api import ChannelOnChain as ChannelOnChain
from ._api import Claim as Claim
from ._api import ClaimRow as ClaimRow
from ._api import CloseSigned as CloseSigned
from ._api import ContractCall as ContractCall
from ._api import CreditExhausted as CreditExhausted
from ._api import Deposit as Deposit
from ._api import FeeRaiser as FeeRaiser
from ._api import Finalize as Finalize
from ._api import Fund as Fund
from ._api import FundRow as FundRow
from ._api import GasMeter as GasMeter
from ._api import GasQuote as GasQuote
from ._api import Hub as Hub
from ._api import HubCall as HubCall
from ._api import Outcome as Outcome
from ._api import RequestClose as RequestClose
from ._api import SettlementPending as SettlementPending
from ._api import Stream as Stream
from ._api import Withdraw as Withdraw
from ._chain_hub import ChainHub as ChainHub
from ._closing import ClosedChannel as ClosedChannel
from ._closing import named_channel as named_channel
from ._confirmations import AT_ONCE as AT_ONCE
from ._confirmations import PUBLIC_CHAIN as PUBLIC_CHAIN
from ._confirmations import Confirmations as Confirmations
from ._credit import CreditBook as CreditBook
from ._credit import CreditPolicy as CreditPolicy
from ._credit import CreditWindow as CreditWindow
from ._credit import MaxLoss as MaxLoss
from ._credit import agreed_loss as agreed_loss
from ._credit import max_loss as max_loss
from ._credit import subnet_of as subnet_of
from ._model_hub import ModelChain as ModelChain
from ._model_hub import ModelHub as ModelHub
from ._outbox import Outbox as Outbox
from ._payee import Payee as Payee
from ._payee import PayeeCounters as PayeeCounters
from ._payer import ChannelNeed as ChannelNeed
from ._payer import ChannelOut as ChannelOut
from ._payer import ChannelUnfundable as ChannelUnfundable
from ._payer import Payer as Payer
from ._settle_policy import SettlePolicy as SettlePolicy
from ._settler import Settler as Settler
from ._wallet import Balances as Balances
from ._wallet import Wallet as Wallet
from ._wallet import too_few_tokens as too_few_tokens
from ._wallet import too_little_free as too_little_free
from ._watch_client import TowerRefused as TowerRefused
from ._watch_client import VoucherKeeping as VoucherKeeping
from ._watchtower import Watchtower as Watchtower

__all__ = [
    "AT_ONCE",
    "PUBLIC_CHAIN",
    "Approve",
    "Balances",
    "ChainHub",
    "ChannelNeed",
    "ChannelOnChain",
    "ChannelOut",
    "ChannelUnfundable",
    "Claim",
    "ClaimRow",
    "CloseSigned",
    "ClosedChannel",
    "Confirmations",
    "ContractCall",
    "CreditBook",
    "CreditExhausted",
    "CreditPolicy",
    "CreditWindow",
    "Deposit",
    "FeeRaiser",
    "Finalize",
    "Fund",
    "FundRow",
    "GasMeter",
    "GasQuote",
    "Hub",
    "HubCall",
    "MaxLoss",
    "ModelChain",
    "ModelHub",
    "Outbox",
    "Outcome",
    "Payee",
    "PayeeCounters",
    "Payer",
    "RequestClose",
    "SettlePolicy",
    "SettlementPending",
    "Settler",
    "Stream",
    "TowerRefused",
    "VoucherKeeping",
    "Wallet",
    "Watchtower",
    "Withdraw",
    "agreed_loss",
    "max_loss",
    "named_channel",
    "subnet_of",
    "too_few_tokens",
    "too_little_free",
]
