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
        open, and `claimed` outlives closing, so that no voucher ever counts twice. `epoch` counts closings, so
        that what a payee signs to close a channel can't close it again after it was opened anew.

        The invariant: the sum of balances plus the sum over channels of (deposit - claimed) is at most the tokens
        that the hub holds. It is less only where somebody sent tokens without `deposit`; those are lost.

        Only for plain ERC-20 tokens. Tokens that take a cut of a transfer are refused at deposit; tokens whose
        balances change by themselves must not be used.
"""

from ethereum.ercs import IERC20

# EIP-3009, as far as it is used here: the token moves the money on the owner's signature, and only for the receiver.
interface IERC3009:
    def receiveWithAuthorization(
        owner: address,
        receiver: address,
        amount: uint256,
        valid_after: uint256,
        valid_before: uint256,
        nonce: bytes32,
        v: uint8,
        r: bytes32,
        s: bytes32,
    ): nonpayable

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

# An address and an amount share a word, since calldata, and the memory that a batch takes, are what a batch costs:
# the address in bits 0-159, the amount in bits 160-255.
struct Funding:
    payee_amount: uint256
    signer: address

struct Claim:
    payer_amount: uint256
    signer: address
    memo: bytes32
    r: bytes32
    vs: bytes32

struct Slot:
    deposit: uint256
    claimed: uint256
    close_at: uint256
    epoch: uint256

# The most rows in one batch; one bit of `skipped` stands for each row of a claim.
MAX_BATCH: public(constant(uint256)) = 256

# Seconds between a payer's request to close and the earliest refund: the time in which the payee, or anyone for
# it, has to submit its newest voucher.
CLOSE_DELAY: public(constant(uint256)) = 86_400

# A channel is one storage slot: deposit in bits 0-95, claimed in bits 96-191, close_at in bits 192-231, epoch in
# bits 232-255.
AMOUNT_BITS: constant(uint256) = 96
MAX_AMOUNT: constant(uint256) = 2**96 - 1
ADDRESS_BITS: constant(uint256) = 160
ADDRESS_MASK: constant(uint256) = 2**160 - 1
TIME_BITS: constant(uint256) = 40
MAX_TIME: constant(uint256) = 2**40 - 1
MAX_EPOCH: constant(uint256) = 2**24 - 1
CLAIMED_MASK: constant(uint256) = MAX_AMOUNT << AMOUNT_BITS
TIME_MASK: constant(uint256) = MAX_TIME << (2 * AMOUNT_BITS)

# Half the order of secp256k1: signatures with a higher s are refused.
HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
S_MASK: constant(uint256) = 2**255 - 1

DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
VOUCHER_TYPEHASH: constant(bytes32) = keccak256("Voucher(bytes32 channel,uint96 amount,bytes32 memo)")
CLOSE_TYPEHASH: constant(bytes32) = keccak256("Close(bytes32 channel,uint24 epoch,uint96 amount,uint40 deadline)")

# What the nonce of an EIP-3009 authorisation has to begin with, so that it says what the money is for: one that was
# signed for anything else does not pass here.
DEPOSIT_INTENT: constant(bytes32) = keccak256("p2pcompute hub: deposit for the signer")
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
def _pack(slot: Slot) -> uint256:
    return (
        slot.deposit
        | (slot.claimed << AMOUNT_BITS)
        | (slot.close_at << (2 * AMOUNT_BITS))
        | (slot.epoch << (2 * AMOUNT_BITS + TIME_BITS))
    )


@internal
@pure
def _unpack(word: uint256) -> Slot:
    return Slot(
        deposit=word & MAX_AMOUNT,
        claimed=(word >> AMOUNT_BITS) & MAX_AMOUNT,
        close_at=(word >> (2 * AMOUNT_BITS)) & MAX_TIME,
        epoch=word >> (2 * AMOUNT_BITS + TIME_BITS),
    )


@external
@nonreentrant
def deposit(amount: uint256, beneficiary: address):
    """
    @notice Bring tokens in, as free balance of an account. The caller has to approve the hub first.
    @param amount How many, in base units.
    @param beneficiary Whose balance grows; not zero.
    """
    assert beneficiary != empty(address), "beneficiary is zero"
    self._pull(amount, beneficiary)


@external
@nonreentrant
def deposit_with_permit(amount: uint256, beneficiary: address, deadline: uint256, v: uint8, r: bytes32, s: bytes32):
    """
    @notice As `deposit`, with the caller's approval in the same transaction (EIP-2612). Whoever submits the permit
            first does no harm: it counts that the hub may move the tokens, not who said so.
    @param amount How many, in base units; the permit is for exactly as many.
    @param beneficiary Whose balance grows; not zero.
    @param deadline UNIX time until which the permit is good.
    @param v The recovery bit of the caller's signature over the token's `Permit`: 27 or 28.
    @param r The first half of that signature.
    @param s The second half of it.
    """
    assert beneficiary != empty(address), "beneficiary is zero"
    # What comes of it does not matter: without an allowance the transfer fails. The owner is the caller, so a token
    # that takes a permit for nothing moves nobody else's tokens.
    permitted: bool = raw_call(
        token.address,
        abi_encode(
            msg.sender,
            self,
            amount,
            deadline,
            v,
            r,
            s,
            method_id=method_id("permit(address,address,uint256,uint256,uint8,bytes32,bytes32)"),
        ),
        revert_on_failure=False,
    )
    self._pull(amount, beneficiary)


@external
@nonreentrant
def deposit_with_authorization(
    owner: address,
    amount: uint256,
    valid_after: uint256,
    valid_before: uint256,
    salt: bytes32,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    """
    @notice Bring tokens in on their owner's signature (EIP-3009, `ReceiveWithAuthorization` to this hub). Anyone may
            submit it; the free balance that grows is the owner's, whoever does.
    @param owner Whose tokens these are.
    @param amount How many, in base units.
    @param valid_after UNIX time after which the authorisation is good.
    @param valid_before UNIX time before which it is good.
    @param salt Any 32 bytes that the owner has not used here before. The nonce that it signs is
           `authorization_nonce(salt)`.
    @param v The recovery bit of the owner's signature: 27 or 28.
    @param r The first half of that signature.
    @param s The second half of it.
    """
    assert owner != empty(address), "owner is zero"
    before: uint256 = staticcall token.balanceOf(self)
    extcall IERC3009(token.address).receiveWithAuthorization(
        owner, self, amount, valid_after, valid_before, self._nonce(salt), v, r, s
    )
    self._credit(msg.sender, owner, amount, before)


@internal
def _pull(amount: uint256, beneficiary: address):
    before: uint256 = staticcall token.balanceOf(self)
    assert extcall token.transferFrom(msg.sender, self, amount, default_return_value=True), "transfer failed"
    self._credit(msg.sender, beneficiary, amount, before)


@internal
def _credit(sender: address, beneficiary: address, amount: uint256, before: uint256):
    assert staticcall token.balanceOf(self) == before + amount, "token takes a cut"
    self.balances[beneficiary] += amount
    log Deposited(sender=sender, beneficiary=beneficiary, amount=amount)


@internal
@view
def _nonce(salt: bytes32) -> bytes32:
    return keccak256(abi_encode(DEPOSIT_INTENT, self, salt))


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
    @param rows For each channel a word of its payee (bits 0-159) and the amount to add (bits 160-255), and its
           signer. Neither payee nor signer may be zero.
    """
    total: uint256 = 0
    for row: Funding in rows:
        payee: address = convert(row.payee_amount & ADDRESS_MASK, address)
        amount: uint256 = row.payee_amount >> ADDRESS_BITS
        assert payee != empty(address) and row.signer != empty(address), "payee or signer is zero"
        channel_id: bytes32 = keccak256(abi_encode(msg.sender, payee, row.signer))
        word: uint256 = self.slots[channel_id]
        # Neither sum can wrap: 257 amounts of 96 bits are far from 256 bits.
        reserved: uint256 = unsafe_add(word & MAX_AMOUNT, amount)
        assert reserved <= MAX_AMOUNT, "amount too high"
        total = unsafe_add(total, amount)
        self.slots[channel_id] = (word & ~(MAX_AMOUNT | TIME_MASK)) | reserved
        log Funded(channel=channel_id, payer=msg.sender, payee=payee, signer=row.signer, deposit=reserved)
    assert self.balances[msg.sender] >= total, "balance too low"
    self.balances[msg.sender] -= total


@external
def claim(payee: address, rows: DynArray[Claim, MAX_BATCH]) -> (uint256, uint256):
    """
    @notice Submit vouchers of many channels of one payee. Anyone may; the payee's free balance gets the money.
            A row that is forged, stale or without money behind it is skipped and does not stop the others. A
            voucher above its channel's deposit counts up to the deposit, and stays good for the rest.
    @param payee Whose channels these are.
    @param rows For each voucher a word of its channel's payer (bits 0-159) and the voucher's amount (bits 160-255),
           the channel's signer, the voucher's memo, and the signature in the 64 bytes of EIP-2098: r, and s with
           the recovery bit on top. s has to be low.
    @return What the payee was credited in all, and a bit for each row that was skipped, the first row lowest.
    """
    domain: bytes32 = self._domain()
    credited: uint256 = 0
    skipped: uint256 = 0
    bit: uint256 = 1
    for row: Claim in rows:
        channel_id: bytes32 = keccak256(abi_encode(row.payer_amount & ADDRESS_MASK, payee, row.signer))
        word: uint256 = self.slots[channel_id]
        claimed: uint256 = (word >> AMOUNT_BITS) & MAX_AMOUNT
        amount: uint256 = row.payer_amount >> ADDRESS_BITS
        total: uint256 = min(amount, word & MAX_AMOUNT)
        good: bool = total > claimed
        if good:
            struct_hash: bytes32 = keccak256(abi_encode(VOUCHER_TYPEHASH, channel_id, amount, row.memo))
            good = self._by(row.signer, domain, struct_hash, row.r, row.vs)
        if good:
            # claimed <= deposit <= the tokens held, so neither of these can wrap.
            gained: uint256 = unsafe_sub(total, claimed)
            self.slots[channel_id] = (word & ~CLAIMED_MASK) | (total << AMOUNT_BITS)
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
def _by(signer: address, domain: bytes32, struct_hash: bytes32, r: bytes32, vs: bytes32) -> bool:
    s: uint256 = convert(vs, uint256) & S_MASK
    # The other half of the curve would give everything that is signed a second signature.
    if s > HALF_N or signer == empty(address):
        return False
    digest: bytes32 = keccak256(concat(x"1901", domain, struct_hash))
    v: uint256 = 27 + (convert(vs, uint256) >> 255)
    return ecrecover(digest, v, convert(r, uint256), s) == signer


@external
def request_close(payee: address, signer: address):
    """
    @notice As payer, ask for what is left on a channel. It comes back `CLOSE_DELAY` later, by `finalize`; until
            then vouchers still count.
    @param payee The channel's payee.
    @param signer The channel's signer.
    """
    channel_id: bytes32 = self._id(msg.sender, payee, signer)
    slot: Slot = self._unpack(self.slots[channel_id])
    assert slot.deposit > slot.claimed, "nothing reserved"
    assert slot.close_at == 0, "already closing"
    slot.close_at = block.timestamp + CLOSE_DELAY
    self.slots[channel_id] = self._pack(slot)
    log CloseRequested(channel=channel_id, payee=payee, close_at=slot.close_at)


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
    slot: Slot = self._unpack(self.slots[channel_id])
    assert slot.deposit > slot.claimed or slot.close_at != 0, "not open"
    if msg.sender != payee:
        assert slot.close_at != 0, "no request to close"
        assert block.timestamp >= slot.close_at, "too early"
    self._close(channel_id, payer, payee, slot)


@external
def close_signed(
    payer: address,
    payee: address,
    signer: address,
    amount: uint256,
    deadline: uint256,
    r: bytes32,
    vs: bytes32,
):
    """
    @notice Close a channel at once, by the payee's signature: EIP-712,
            `Close(bytes32 channel,uint24 epoch,uint96 amount,uint40 deadline)`. Anyone may submit it. The payee
            names the total that it has to have been paid first, so its newest voucher is claimed before this.
            It should take no more vouchers on the channel until the deadline has passed.
    @param payer The channel's payer.
    @param payee The channel's payee, who signed.
    @param signer The channel's signer.
    @param amount What has to be claimed at least, over the channel's whole life.
    @param deadline UNIX time up to which the signature is good.
    @param r The first half of the signature.
    @param vs Its second half with the recovery bit on top (EIP-2098). s has to be low.
    """
    channel_id: bytes32 = self._id(payer, payee, signer)
    slot: Slot = self._unpack(self.slots[channel_id])
    assert slot.deposit > slot.claimed or slot.close_at != 0, "not open"
    assert slot.epoch < MAX_EPOCH, "closed too often"
    assert block.timestamp <= deadline, "too late"
    assert slot.claimed >= amount, "claim first"
    struct_hash: bytes32 = keccak256(abi_encode(CLOSE_TYPEHASH, channel_id, slot.epoch, amount, deadline))
    assert self._by(payee, self._domain(), struct_hash, r, vs), "not signed by the payee"
    self._close(channel_id, payer, payee, slot)


@internal
def _close(channel_id: bytes32, payer: address, payee: address, slot: Slot):
    refund: uint256 = slot.deposit - slot.claimed
    closed: Slot = Slot(deposit=slot.claimed, claimed=slot.claimed, close_at=0, epoch=min(slot.epoch + 1, MAX_EPOCH))
    self.slots[channel_id] = self._pack(closed)
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
    slot: Slot = self._unpack(self.slots[channel_id])
    return slot.deposit, slot.claimed, slot.close_at


@external
@view
def epoch(channel_id: bytes32) -> uint256:
    """
    @notice How often a channel was closed: what a payee's `Close` has to name.
    @param channel_id keccak256(abi.encode(payer, payee, signer)).
    @return The count; it stays at 2**24 - 1, where no `Close` counts any more.
    """
    return self._unpack(self.slots[channel_id]).epoch


@external
@view
def authorization_nonce(salt: bytes32) -> bytes32:
    """
    @notice The nonce of an EIP-3009 authorisation that `deposit_with_authorization` takes.
    @param salt Any 32 bytes.
    @return keccak256(abi.encode(keccak256("p2pcompute hub: deposit for the signer"), this contract, salt)).
    """
    return self._nonce(salt)


@external
@view
def domain_separator() -> bytes32:
    """
    @notice The EIP-712 domain of this hub's vouchers and closings.
    @return keccak256 of the encoded domain: "p2pcompute hub", "1", this chain, this contract.
    """
    return self._domain()
