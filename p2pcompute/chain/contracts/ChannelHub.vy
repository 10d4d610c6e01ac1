# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# SPDX-License-Identifier: Apache-2.0
"""
@title Channel hub
@license Apache-2.0
@author p2pcompute contributors
@notice Payment channels for one token. A payer reserves money for a payee and then pays by signing vouchers off
        chain; anyone can submit a batch of the newest vouchers, which moves the money and leaves the channels
        open. The contract has no administrator, takes no fee and cannot be changed.
@dev    A channel runs one way, from payer to payee, and is named by (payer, payee, signer): the signer is the key
        whose vouchers count, so a payer can keep its account key offline. A voucher carries the total ever paid
        on the channel, so only the newest one matters, an old one can do no harm, and there is nothing to
        dispute. `deposit` and `claimed` are totals over the channel's whole life: they never fall while it is
        open, and `claimed` outlives closing, so that no voucher ever counts twice.

        The invariant: the sum of balances plus the sum over channels of (deposit - claimed) is at most the tokens
        that the hub holds. It is less only where somebody sent tokens without `deposit`; those are lost.

        Only for plain ERC-20 tokens. Tokens that take a cut of a transfer are refused at deposit; tokens whose
        balances change by themselves must not be used.
"""

from ethereum.ercs import IERC20

event Deposited:
    sender: indexed(address)
    beneficiary: indexed(address)
    amount: uint256

event Withdrawn:
    owner: indexed(address)
    to: indexed(address)
    amount: uint256

event Funded:
    channel: indexed(bytes32)
    payer: indexed(address)
    payee: indexed(address)
    signer: address
    deposit: uint256

event Claimed:
    channel: indexed(bytes32)
    payee: indexed(address)
    credited: uint256
    claimed: uint256
    memo: bytes32

event Checkpoint:
    payee: indexed(address)
    credited: uint256
    skipped: uint256

event CloseRequested:
    channel: indexed(bytes32)
    payee: indexed(address)
    close_at: uint256

event Closed:
    channel: indexed(bytes32)
    payer: indexed(address)
    payee: indexed(address)
    refund: uint256

struct Funding:
    payee: address
    signer: address
    amount: uint256

struct Claim:
    payer: address
    signer: address
    amount: uint256
    memo: bytes32
    r: bytes32
    vs: bytes32

# The most rows in one batch; one bit of `skipped` stands for each row of a claim.
MAX_BATCH: public(constant(uint256)) = 256

# Seconds between a payer's request to close and the earliest refund: the time in which the payee, or anyone for
# it, has to submit its newest voucher.
CLOSE_DELAY: public(constant(uint256)) = 86_400

# A channel is one storage slot: deposit in bits 0-95, claimed in bits 96-191, close_at in bits 192-231.
AMOUNT_BITS: constant(uint256) = 96
MAX_AMOUNT: constant(uint256) = 2**96 - 1

# Half the order of secp256k1: signatures with a higher s are refused.
HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
S_MASK: constant(uint256) = 2**255 - 1

DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
VOUCHER_TYPEHASH: constant(bytes32) = keccak256("Voucher(bytes32 channel,uint96 amount,bytes32 memo)")
NAME_HASH: constant(bytes32) = keccak256("p2pcompute hub")
VERSION_HASH: constant(bytes32) = keccak256("1")

token: public(immutable(IERC20))
BORN_ON: immutable(uint256)
BORN_DOMAIN: immutable(bytes32)

# Free money by account, in base units of the token: to withdraw, or to fund channels with.
balances: public(HashMap[address, uint256])
slots: HashMap[bytes32, uint256]


@deploy
def __init__(token_: IERC20):
    """
    @notice Set up a hub for one token, for good.
    @param token_ An ERC-20 contract.
    """
    assert token_.address.is_contract, "token is not a contract"
    token = token_
    BORN_ON = chain.id
    BORN_DOMAIN = self._domain_of(chain.id)


@internal
@view
def _domain_of(chain_id: uint256) -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPEHASH, NAME_HASH, VERSION_HASH, chain_id, self))


@internal
@view
def _domain() -> bytes32:
    # After a split of the chain the vouchers of one side must not count on the other.
    if chain.id == BORN_ON:
        return BORN_DOMAIN
    return self._domain_of(chain.id)


@internal
@pure
def _id(payer: address, payee: address, signer: address) -> bytes32:
    return keccak256(abi_encode(payer, payee, signer))


@internal
@pure
def _pack(deposit_: uint256, claimed: uint256, close_at: uint256) -> uint256:
    return deposit_ | (claimed << AMOUNT_BITS) | (close_at << (2 * AMOUNT_BITS))


@internal
@pure
def _unpack(slot: uint256) -> (uint256, uint256, uint256):
    return slot & MAX_AMOUNT, (slot >> AMOUNT_BITS) & MAX_AMOUNT, slot >> (2 * AMOUNT_BITS)


@external
@nonreentrant
def deposit(amount: uint256, beneficiary: address):
    """
    @notice Bring tokens in, as free balance of an account. The caller has to approve the hub first.
    @param amount How many, in base units.
    @param beneficiary Whose balance grows; not zero.
    """
    assert beneficiary != empty(address), "beneficiary is zero"
    before: uint256 = staticcall token.balanceOf(self)
    assert extcall token.transferFrom(msg.sender, self, amount, default_return_value=True), "transfer failed"
    assert staticcall token.balanceOf(self) == before + amount, "token takes a cut"
    self.balances[beneficiary] += amount
    log Deposited(sender=msg.sender, beneficiary=beneficiary, amount=amount)


@external
@nonreentrant
def withdraw(amount: uint256, to: address):
    """
    @notice Take tokens out of the caller's free balance.
    @param amount How many, in base units; at most the balance.
    @param to Who gets them; neither zero nor the hub.
    """
    assert to != empty(address) and to != self, "bad receiver"
    assert self.balances[msg.sender] >= amount, "balance too low"
    self.balances[msg.sender] -= amount
    assert extcall token.transfer(to, amount, default_return_value=True), "transfer failed"
    log Withdrawn(owner=msg.sender, to=to, amount=amount)


@external
def fund(rows: DynArray[Funding, MAX_BATCH]):
    """
    @notice Open or top up channels of which the caller is the payer, out of its free balance. A request to close
            one of them is withdrawn by this. An amount of zero only does that.
    @param rows For each channel its payee, its signer (neither zero) and the amount to add.
    """
    total: uint256 = 0
    for row: Funding in rows:
        assert row.payee != empty(address) and row.signer != empty(address), "payee or signer is zero"
        channel_id: bytes32 = self._id(msg.sender, row.payee, row.signer)
        reserved: uint256 = 0
        claimed: uint256 = 0
        close_at: uint256 = 0
        reserved, claimed, close_at = self._unpack(self.slots[channel_id])
        # The first test keeps the sum below from wrapping into an error of arithmetic.
        assert row.amount <= MAX_AMOUNT and reserved + row.amount <= MAX_AMOUNT, "amount too high"
        reserved += row.amount
        total += row.amount
        self.slots[channel_id] = self._pack(reserved, claimed, 0)
        log Funded(
            channel=channel_id, payer=msg.sender, payee=row.payee, signer=row.signer, deposit=reserved
        )
    assert self.balances[msg.sender] >= total, "balance too low"
    self.balances[msg.sender] -= total


@external
def claim(payee: address, rows: DynArray[Claim, MAX_BATCH]) -> (uint256, uint256):
    """
    @notice Submit vouchers of many channels of one payee. Anyone may; the payee's free balance gets the money.
            A row that is forged, stale, out of range or without money behind it is skipped and does not stop the
            others. A voucher above its channel's deposit counts up to the deposit, and stays good for the rest.
    @param payee Whose channels these are.
    @param rows For each voucher its channel's payer and signer, its amount and memo, and the signature in the
           64 bytes of EIP-2098: r, and s with the recovery bit on top. s has to be low.
    @return What the payee was credited in all, and a bit for each row that was skipped, the first row lowest.
    """
    domain: bytes32 = self._domain()
    credited: uint256 = 0
    skipped: uint256 = 0
    bit: uint256 = 1
    for row: Claim in rows:
        channel_id: bytes32 = self._id(row.payer, payee, row.signer)
        slot: uint256 = self.slots[channel_id]
        reserved: uint256 = 0
        claimed: uint256 = 0
        close_at: uint256 = 0
        reserved, claimed, close_at = self._unpack(slot)
        total: uint256 = min(row.amount, reserved)
        good: bool = row.amount <= MAX_AMOUNT and total > claimed
        if good:
            good = self._signed(domain, channel_id, row)
        if good:
            self.slots[channel_id] = self._pack(reserved, total, close_at)
            # claimed <= deposit <= the tokens held, so neither of these can wrap.
            gained: uint256 = unsafe_sub(total, claimed)
            credited = unsafe_add(credited, gained)
            log Claimed(channel=channel_id, payee=payee, credited=gained, claimed=total, memo=row.memo)
        else:
            skipped |= bit
        bit = bit << 1
    if credited > 0:
        self.balances[payee] += credited
    log Checkpoint(payee=payee, credited=credited, skipped=skipped)
    return credited, skipped


@internal
@view
def _signed(domain: bytes32, channel_id: bytes32, row: Claim) -> bool:
    s: uint256 = convert(row.vs, uint256) & S_MASK
    # The other half of the curve would give every voucher a second signature.
    if s > HALF_N or row.signer == empty(address):
        return False
    digest: bytes32 = keccak256(
        concat(
            x"1901",
            domain,
            keccak256(abi_encode(VOUCHER_TYPEHASH, channel_id, row.amount, row.memo)),
        )
    )
    v: uint256 = 27 + (convert(row.vs, uint256) >> 255)
    return ecrecover(digest, v, convert(row.r, uint256), s) == row.signer


@external
def request_close(payee: address, signer: address):
    """
    @notice As payer, ask for what is left on a channel. It comes back `CLOSE_DELAY` later, by `finalize`; until
            then vouchers still count.
    @param payee The channel's payee.
    @param signer The channel's signer.
    """
    channel_id: bytes32 = self._id(msg.sender, payee, signer)
    reserved: uint256 = 0
    claimed: uint256 = 0
    close_at: uint256 = 0
    reserved, claimed, close_at = self._unpack(self.slots[channel_id])
    assert reserved > claimed, "nothing reserved"
    assert close_at == 0, "already closing"
    close_at = block.timestamp + CLOSE_DELAY
    self.slots[channel_id] = self._pack(reserved, claimed, close_at)
    log CloseRequested(channel=channel_id, payee=payee, close_at=close_at)


@external
def finalize(payer: address, payee: address, signer: address):
    """
    @notice Close a channel: what is reserved and unclaimed goes back to the payer's free balance. The payee may
            at any time; anyone else from `CLOSE_DELAY` after the payer's request on. The channel can be funded
            again; vouchers up to what was claimed stay worthless.
    @param payer The channel's payer.
    @param payee The channel's payee.
    @param signer The channel's signer.
    """
    channel_id: bytes32 = self._id(payer, payee, signer)
    reserved: uint256 = 0
    claimed: uint256 = 0
    close_at: uint256 = 0
    reserved, claimed, close_at = self._unpack(self.slots[channel_id])
    assert reserved > claimed or close_at != 0, "not open"
    if msg.sender != payee:
        assert close_at != 0, "no request to close"
        assert block.timestamp >= close_at, "too early"
    refund: uint256 = reserved - claimed
    self.slots[channel_id] = self._pack(claimed, claimed, 0)
    self.balances[payer] += refund
    log Closed(channel=channel_id, payer=payer, payee=payee, refund=refund)


@external
@view
def channel(channel_id: bytes32) -> (uint256, uint256, uint256):
    """
    @notice Where a channel stands.
    @param channel_id keccak256(abi.encode(payer, payee, signer)).
    @return The total deposit, the total claimed (both in base units, over the channel's whole life), and the UNIX
            time from which anyone may close it, or zero where the payer has not asked for that.
    """
    return self._unpack(self.slots[channel_id])


@external
@view
def domain_separator() -> bytes32:
    """
    @notice The EIP-712 domain of this hub's vouchers.
    @return keccak256 of the encoded domain: "p2pcompute hub", "1", this chain, this contract.
    """
    return self._domain()
