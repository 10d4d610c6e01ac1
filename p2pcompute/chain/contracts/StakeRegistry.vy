# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# SPDX-License-Identifier: Apache-2.0
"""
@title Stake registry
@license Apache-2.0
@author p2pcompute contributors
@notice Providers and arbiters leave money here that they lose when it is shown what they did. Nobody has to; whoever
        wants a counterparty with something to lose looks here. The contract has no administrator, takes no fee and
        cannot be changed.
@dev    Stake falls in two ways only. A verdict: m of n staked arbiters sign it, whom provider and requester have both
        named, in terms that say how much is at risk and until when. And equivocation: two receipts of one chunk in
        strict mode with different outputs, by a key that speaks for the provider; since a crash or an old backup
        does that to the honest as well, the cut is small, once a task and once a day. Of all that is taken half is
        burned, so that nobody gains by accusing itself: it stays here, and belongs to nobody.

        What is signed is EIP-712 in this contract's domain, by secp256k1 keys, since the EVM cannot check the
        Ed25519 signatures that nodes exchange. A provider names its receipt key with `set_receipt_key`; an
        account's own key speaks for it too. A receipt key lies on a machine that runs strangers' code, so terms
        that it signs put no more at risk in all than its owner has allowed it; whoever steals it gets no more.

        The invariant: stakes, credits and what was burned come to at most the tokens that the registry holds. It is
        less only where somebody sent tokens without `stake`; those are lost.

        Delegation, rewards and votes have no place in here; contracts for those can hold stakes of their own and
        read `active` and `weight`. Only for plain ERC-20 tokens, as the channel hub.
"""

from ethereum.ercs import IERC20

event Staked:
    owner: indexed(address)
    amount: uint256
    stake: uint256

event Declared:
    owner: indexed(address)
    cores: uint256

event UnstakeRequested:
    owner: indexed(address)
    leaving: uint256
    leave_at: uint256

event Unstaked:
    owner: indexed(address)
    amount: uint256

event Withdrawn:
    owner: indexed(address)
    to: indexed(address)
    amount: uint256

event ReceiptKeySet:
    owner: indexed(address)
    key: indexed(address)
    retired: address

event Allowed:
    owner: indexed(address)
    key: indexed(address)
    amount: uint256

event Anchored:
    owner: indexed(address)
    task: indexed(bytes32)
    root: bytes32
    count: uint256

event Slashed:
    owner: indexed(address)
    proof: indexed(bytes32)
    beneficiary: indexed(address)
    taken: uint256
    paid: uint256

event Judged:
    terms: indexed(bytes32)
    evidence: bytes32
    amount: uint256

# What a provider and a requester sign for one task. `task` is SHA-256 of their agreement.
struct Terms:
    task: bytes32
    provider: address
    requester: address
    at_risk: uint256
    threshold: uint256
    expires: uint256
    arbiters: DynArray[address, 16]

# 64 bytes of EIP-2098: r, and s with the recovery bit on top.
struct Signature:
    r: bytes32
    vs: bytes32

# One arbiter's signature: its place in the list of arbiters, and r and vs as above.
struct Vote:
    arbiter: uint256
    r: bytes32
    vs: bytes32

struct Account:
    stake: uint256
    leaving: uint256
    leave_at: uint256

MAX_ARBITERS: public(constant(uint256)) = 16

# Digests on the way from a leaf to the root of a million receipts.
MAX_PATH: public(constant(uint256)) = 20
MAX_LEAVES: public(constant(uint256)) = 2**20

# Seconds from a request to unstake to the money: the time in which a proof can still be brought. A retired receipt
# key speaks for its owner as long.
UNSTAKE_DELAY: public(constant(uint256)) = 1_209_600

# Seconds between two cuts for equivocation of one provider: a crash must not cost more the more was lost in it.
CUT_PAUSE: public(constant(uint256)) = 86_400

# A cut for equivocation is a twentieth of the stake, and at most of the minimum stake.
CUT_PARTS: public(constant(uint256)) = 20

# Of what is taken one part in so many goes to whoever was wronged, or reported it. The rest is burned.
PAID_PARTS: public(constant(uint256)) = 2

MAX_AMOUNT: constant(uint256) = 2**96 - 1
MAX_CORES: constant(uint256) = 2**64 - 1
AMOUNT_BITS: constant(uint256) = 96

# Half the order of secp256k1: signatures with a higher s are refused.
HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
S_MASK: constant(uint256) = 2**255 - 1

DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
NAME_HASH: constant(bytes32) = keccak256("p2pcompute stake")
VERSION_HASH: constant(bytes32) = keccak256("1")
KEY_TYPEHASH: constant(bytes32) = keccak256("ReceiptKey(address owner)")
RECEIPT_TYPEHASH: constant(bytes32) = keccak256("StrictReceipt(bytes32 task,uint64 index,bytes32 output)")
TERMS_TYPEHASH: constant(bytes32) = keccak256(
    "Terms(bytes32 task,address provider,address requester,uint96 at_risk,uint8 threshold,uint40 expires,address[] arbiters)"
)
VERDICT_TYPEHASH: constant(bytes32) = keccak256("Verdict(bytes32 terms,uint96 amount,bytes32 evidence)")

token: public(immutable(IERC20))

# The least that counts as a stake, in base units of the token.
min_stake: public(immutable(uint256))

# What each reference core that a provider declares lifts its cap by, in base units.
stake_per_core: public(immutable(uint256))

# Stake in bits 0-95, of it on its way out in bits 96-191, from when that can be taken in bits 192-231.
accounts: HashMap[address, uint256]

# Money that is nobody's stake any more: to withdraw.
credits: public(HashMap[address, uint256])

# What was taken and paid to nobody. It stays here.
burned: public(uint256)

# The machine that a provider says it has, in reference cores.
cores: public(HashMap[address, uint256])

# The key that signs an account's receipts now; whom any key has ever spoken for; since when it does no more.
receipt_key: public(HashMap[address, address])
key_owner: public(HashMap[address, address])
key_retired: public(HashMap[address, uint256])

# What verdicts may still take on terms that a key has signed for its owner.
allowance: public(HashMap[address, uint256])

anchors: HashMap[bytes32, bytes32]
judged: public(HashMap[bytes32, bool])
cut_for: HashMap[bytes32, bool]
next_cut: public(HashMap[address, uint256])


@deploy
def __init__(token_: IERC20, min_stake_: uint256, stake_per_core_: uint256):
    """
    @notice Set up a registry for one token, for good.
    @param token_ An ERC-20 contract.
    @param min_stake_ The least stake, in base units; not zero.
    @param stake_per_core_ What a declared core lifts a provider's cap by, in base units.
    """
    assert token_.address.is_contract, "token is not a contract"
    assert 0 < min_stake_ and min_stake_ <= MAX_AMOUNT and stake_per_core_ <= MAX_AMOUNT, "bad amounts"
    token = token_
    min_stake = min_stake_
    stake_per_core = stake_per_core_


@internal
@view
def _account(owner: address) -> Account:
    word: uint256 = self.accounts[owner]
    return Account(
        stake=word & MAX_AMOUNT, leaving=(word >> AMOUNT_BITS) & MAX_AMOUNT, leave_at=word >> (2 * AMOUNT_BITS)
    )


@internal
def _store(owner: address, account: Account):
    self.accounts[owner] = (
        account.stake | (account.leaving << AMOUNT_BITS) | (account.leave_at << (2 * AMOUNT_BITS))
    )


@internal
@view
def _cap(owner: address) -> uint256:
    return min(max(min_stake, self.cores[owner] * stake_per_core), MAX_AMOUNT)


# Stake and what becomes of it


@external
def declare(cores: uint256):
    """
    @notice Say how much machine the caller offers. Its stake, and the weight of it, is capped by that, so that stake
            follows machines. It is the caller's word; who trades with it compares it with the caller's ads.
    @param cores In reference cores, as its ads measure devices.
    """
    assert cores <= MAX_CORES, "too many cores"
    self.cores[msg.sender] = cores
    log Declared(owner=msg.sender, cores=cores)


@external
@nonreentrant
def stake(amount: uint256):
    """
    @notice Add to the caller's stake. The caller has to approve the registry first.
    @param amount How many, in base units. What stays staked has to come to the minimum, and at most to the cap.
    """
    account: Account = self._account(msg.sender)
    assert amount <= MAX_AMOUNT and account.stake + amount <= self._cap(msg.sender), "above the cap"
    account.stake += amount
    assert account.stake - account.leaving >= min_stake, "below the minimum"
    self._store(msg.sender, account)
    before: uint256 = staticcall token.balanceOf(self)
    assert extcall token.transferFrom(msg.sender, self, amount, default_return_value=True), "transfer failed"
    assert staticcall token.balanceOf(self) == before + amount, "token takes a cut"
    log Staked(owner=msg.sender, amount=amount, stake=account.stake)


@external
def request_unstake(amount: uint256):
    """
    @notice Ask for stake back. It can be taken `UNSTAKE_DELAY` later, by `unstake`; until then it no longer counts,
            and can still be lost. Asking again adds to it, and starts the delay anew for all of it.
    @param amount How many, in base units. What stays has to be nothing, or to come to the minimum.
    """
    account: Account = self._account(msg.sender)
    staying: uint256 = account.stake - account.leaving
    assert amount > 0 and amount <= staying, "not staked"
    assert amount == staying or staying - amount >= min_stake, "below the minimum"
    account.leaving += amount
    account.leave_at = block.timestamp + UNSTAKE_DELAY
    self._store(msg.sender, account)
    log UnstakeRequested(owner=msg.sender, leaving=account.leaving, leave_at=account.leave_at)


@external
def unstake():
    """
    @notice Take what was asked for out of the stake, when its delay is over; then `withdraw` it.
    """
    account: Account = self._account(msg.sender)
    amount: uint256 = account.leaving
    assert amount > 0, "nothing asked for"
    assert block.timestamp >= account.leave_at, "too early"
    self._store(msg.sender, Account(stake=account.stake - amount, leaving=0, leave_at=0))
    self.credits[msg.sender] += amount
    log Unstaked(owner=msg.sender, amount=amount)


@external
@nonreentrant
def withdraw(amount: uint256, to: address):
    """
    @notice Take tokens out of the caller's credit.
    @param amount How many, in base units; at most the credit.
    @param to Who gets them; neither zero nor the registry.
    """
    assert to != empty(address) and to != self, "bad receiver"
    assert self.credits[msg.sender] >= amount, "credit too low"
    self.credits[msg.sender] -= amount
    assert extcall token.transfer(to, amount, default_return_value=True), "transfer failed"
    log Withdrawn(owner=msg.sender, to=to, amount=amount)


# Who speaks for whom


@external
def set_receipt_key(key: address, signature: Signature):
    """
    @notice Name the key that signs the caller's receipts and terms. The one before it is retired: it speaks for the
            caller for `UNSTAKE_DELAY` more, so that changing keys is no way out.
    @param key Its address. It has never spoken for anybody. Zero only retires the one before.
    @param signature The key's own, over EIP-712 `ReceiptKey(address owner)`; of no account where the key is zero.
    """
    old: address = self.receipt_key[msg.sender]
    if key != empty(address):
        assert self.key_owner[key] == empty(address), "key was used before"
        struct_hash: bytes32 = keccak256(abi_encode(KEY_TYPEHASH, msg.sender))
        assert self._recover(struct_hash, signature.r, signature.vs) == key, "not signed by the key"
        self.key_owner[key] = msg.sender
    if old != empty(address):
        self.key_retired[old] = block.timestamp
    self.receipt_key[msg.sender] = key
    log ReceiptKeySet(owner=msg.sender, key=key, retired=old)


@external
def allow(key: address, amount: uint256):
    """
    @notice Set what verdicts may take from the caller from now on, in all, on terms that its key has signed. It can't
            be lowered, since somebody may count on it; it ends with the key.
    @param key A key that the caller has named.
    @param amount In base units; at least what is left of it.
    """
    assert self.key_owner[key] == msg.sender and msg.sender != empty(address), "not the caller's key"
    assert amount >= self.allowance[key], "can not be lowered"
    self.allowance[key] = amount
    log Allowed(owner=msg.sender, key=key, amount=amount)


@internal
@view
def _speaks(owner: address, struct_hash: bytes32, r: bytes32, vs: bytes32) -> bool:
    return self._speaks_for(owner, self._recover(struct_hash, r, vs))


@internal
@view
def _speaks_for(owner: address, signer: address) -> bool:
    if signer == empty(address):
        return False
    if signer == owner:
        return True
    if self.key_owner[signer] != owner:
        return False
    retired: uint256 = self.key_retired[signer]
    return retired == 0 or block.timestamp < retired + UNSTAKE_DELAY


@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPEHASH, NAME_HASH, VERSION_HASH, chain.id, self))


@internal
@view
def _recover(struct_hash: bytes32, r: bytes32, vs: bytes32) -> address:
    s: uint256 = convert(vs, uint256) & S_MASK
    if s > HALF_N:
        return empty(address)
    digest: bytes32 = keccak256(concat(x"1901", self._domain(), struct_hash))
    return ecrecover(digest, 27 + (convert(vs, uint256) >> 255), convert(r, uint256), s)


# Proofs


@external
def anchor(task: bytes32, root: bytes32, count: uint256):
    """
    @notice As provider, fix what was signed for a task: the root of a Merkle tree (RFC 9162, SHA-256) over the EIP-712
            struct hashes of the task's receipts. Once for each task. Nobody else's root counts.
    @param task The task.
    @param root The root.
    @param count How many receipts there are.
    """
    assert count > 0 and count <= MAX_LEAVES, "bad count"
    place: bytes32 = self._place(msg.sender, task)
    assert self.anchors[place] == empty(bytes32), "anchored before"
    self.anchors[place] = keccak256(abi_encode(root, count))
    log Anchored(owner=msg.sender, task=task, root=root, count=count)


@internal
@pure
def _place(owner: address, task: bytes32) -> bytes32:
    return keccak256(abi_encode(owner, task))


@internal
@pure
def _receipt(task: bytes32, index: uint256, output: bytes32) -> bytes32:
    return keccak256(abi_encode(RECEIPT_TYPEHASH, task, index, output))


@external
def slash_equivocation(
    owner: address,
    task: bytes32,
    index: uint256,
    outputs: bytes32[2],
    signatures: Signature[2],
):
    """
    @notice Show two receipts of one chunk with different outputs. Anyone may; the caller is credited its part.
    @param owner Whose receipts these are.
    @param task The task.
    @param index The chunk.
    @param outputs The two outputs.
    @param signatures The two signatures, each over EIP-712 `StrictReceipt` with one of the outputs.
    """
    assert outputs[0] != outputs[1], "the same output"
    for i: uint256 in range(2):
        struct_hash: bytes32 = self._receipt(task, index, outputs[i])
        assert self._speaks(owner, struct_hash, signatures[i].r, signatures[i].vs), "not signed for the owner"
    self._cut(owner, task)


@external
def slash_anchored(
    owner: address,
    task: bytes32,
    index: uint256,
    outputs: bytes32[2],
    signature: Signature,
    root: bytes32,
    count: uint256,
    position: uint256,
    path: DynArray[bytes32, 20],
):
    """
    @notice Show a receipt that differs from what its provider has anchored. Anyone may, as above.
    @param owner Whose receipts these are, and who anchored.
    @param task The task.
    @param index The chunk.
    @param outputs The output that was anchored, and the one that was signed.
    @param signature Over EIP-712 `StrictReceipt` with the second output.
    @param root The root that was anchored.
    @param count The count that was anchored.
    @param position The receipt's place among the leaves, from 0.
    @param path The digests beside the way from the leaf to the root, the leaf's neighbour first.
    """
    assert outputs[0] != outputs[1], "the same output"
    assert self.anchors[self._place(owner, task)] == keccak256(abi_encode(root, count)), "not anchored by the owner"
    leaf: bytes32 = self._receipt(task, index, outputs[0])
    assert self._climb(leaf, count, position, path) == root, "not in the tree"
    struct_hash: bytes32 = self._receipt(task, index, outputs[1])
    assert self._speaks(owner, struct_hash, signature.r, signature.vs), "not signed for the owner"
    self._cut(owner, task)


@internal
@view
def _climb(leaf: bytes32, count: uint256, position: uint256, path: DynArray[bytes32, 20]) -> bytes32:
    # RFC 9162, section 2.1.3.2. A leaf is hashed behind a zero byte and a node behind a one byte.
    assert position < count, "no such leaf"
    found: bytes32 = sha256(concat(x"00", leaf))
    index: uint256 = position
    last: uint256 = count - 1
    used: uint256 = 0
    for i: uint256 in range(MAX_PATH):
        if last == 0:
            break
        if index & 1 == 1:
            found = sha256(concat(x"01", path[used], found))
            used += 1
        elif index != last:
            found = sha256(concat(x"01", found, path[used]))
            used += 1
        index = index >> 1
        last = last >> 1
    assert last == 0 and used == len(path), "bad path"
    return found


@internal
def _cut(owner: address, task: bytes32):
    place: bytes32 = self._place(owner, task)
    assert not self.cut_for[place], "cut for this task before"
    assert block.timestamp >= self.next_cut[owner], "cut a moment ago"
    self.cut_for[place] = True
    self.next_cut[owner] = block.timestamp + CUT_PAUSE
    taken: uint256 = self._slash(owner, min(self._account(owner).stake, min_stake) // CUT_PARTS, msg.sender, task)


@external
def slash_by_verdict(
    terms: Terms,
    provider_signature: Signature,
    requester_signature: Signature,
    amount: uint256,
    evidence: bytes32,
    votes: DynArray[Vote, 16],
):
    """
    @notice Carry out what arbiters have decided. Anyone may, until the terms expire, once; the requester is credited
            its part.
    @param terms What provider and requester have both signed: EIP-712 `Terms`. Its arbiters ascend, and neither of
           the two is among them.
    @param provider_signature Of a key that speaks for the provider; where that is not the provider's own, no more is
           taken than its allowance.
    @param requester_signature The requester's.
    @param amount What the arbiters want to be taken, in base units. No more is than `terms.at_risk`, nor than there
           is.
    @param evidence SHA-256 of what they judged by.
    @param votes Their signatures over EIP-712 `Verdict`, their places in the list ascending; at least
           `terms.threshold`, each by a key that speaks for an arbiter that has the minimum at stake.
    """
    count: uint256 = len(terms.arbiters)
    assert terms.threshold > 0 and terms.threshold <= count, "bad threshold"
    assert block.timestamp <= terms.expires, "too late"
    previous: address = empty(address)
    for arbiter: address in terms.arbiters:
        assert convert(arbiter, uint256) > convert(previous, uint256), "arbiters do not ascend"
        assert arbiter != terms.provider and arbiter != terms.requester, "a party is no arbiter"
        previous = arbiter
    terms_hash: bytes32 = self._terms_hash(terms)
    assert not self.judged[terms_hash], "judged before"
    self.judged[terms_hash] = True
    signer: address = self._recover(terms_hash, provider_signature.r, provider_signature.vs)
    assert self._speaks_for(terms.provider, signer), "not the provider's"
    assert self._recover(terms_hash, requester_signature.r, requester_signature.vs) == terms.requester, (
        "not the requester's"
    )
    assert terms.requester != empty(address), "no requester"

    struct_hash: bytes32 = keccak256(abi_encode(VERDICT_TYPEHASH, terms_hash, amount, evidence))
    after: uint256 = 0
    for vote: Vote in votes:
        assert vote.arbiter >= after and vote.arbiter < count, "votes do not ascend"
        after = vote.arbiter + 1
        arbiter: address = terms.arbiters[vote.arbiter]
        assert self._speaks(arbiter, struct_hash, vote.r, vote.vs), "not signed by the arbiter"
        assert self._active(arbiter), "arbiter has no stake"
    assert len(votes) >= terms.threshold, "too few votes"
    log Judged(terms=terms_hash, evidence=evidence, amount=amount)
    most: uint256 = min(amount, terms.at_risk)
    if signer != terms.provider:
        most = min(most, self.allowance[signer])
    taken: uint256 = self._slash(terms.provider, most, terms.requester, terms_hash)
    if signer != terms.provider:
        self.allowance[signer] -= taken


@internal
@view
def _terms_hash(terms: Terms) -> bytes32:
    # EIP-712: an array is the hash of its members, one after the other; behind offset and length they are that.
    members: bytes32 = keccak256(slice(abi_encode(terms.arbiters), 64, 32 * len(terms.arbiters)))
    return keccak256(
        abi_encode(
            TERMS_TYPEHASH,
            terms.task,
            terms.provider,
            terms.requester,
            terms.at_risk,
            terms.threshold,
            terms.expires,
            members,
        )
    )


@internal
def _slash(owner: address, amount: uint256, beneficiary: address, proof: bytes32) -> uint256:
    account: Account = self._account(owner)
    taken: uint256 = min(amount, account.stake)
    assert taken > 0, "nothing to take"
    account.stake -= taken
    # What stays is taken before what leaves.
    account.leaving = min(account.leaving, account.stake)
    self._store(owner, account)
    paid: uint256 = taken // PAID_PARTS
    self.credits[beneficiary] += paid
    self.burned += taken - paid
    log Slashed(owner=owner, proof=proof, beneficiary=beneficiary, taken=taken, paid=paid)
    return taken


# Reads


@internal
@view
def _active(owner: address) -> bool:
    account: Account = self._account(owner)
    return account.stake - account.leaving >= min_stake


@external
@view
def active(owner: address) -> bool:
    """
    @notice Whether an account has at least the minimum at stake, what is on its way out not counted.
    @param owner The account.
    @return Whether.
    """
    return self._active(owner)


@external
@view
def account(owner: address) -> (uint256, uint256, uint256):
    """
    @notice Where an account's stake stands.
    @param owner The account.
    @return All that it can lose, how much of it is on its way out (both in base units), and the UNIX time from which
            that can be taken, or zero where nothing was asked for.
    """
    found: Account = self._account(owner)
    return found.stake, found.leaving, found.leave_at


@external
@view
def weight(owner: address) -> uint256:
    """
    @notice What an account's stake counts for: what stays of it, up to its cap; nothing below the minimum.
    @param owner The account.
    @return In base units.
    """
    if not self._active(owner):
        return 0
    found: Account = self._account(owner)
    return min(found.stake - found.leaving, self._cap(owner))


@external
@view
def cap(owner: address) -> uint256:
    """
    @notice The most that an account may have at stake.
    @param owner The account.
    @return In base units: the minimum, or `stake_per_core` for each core it has declared.
    """
    return self._cap(owner)


@external
@view
def speaks_for(owner: address, key: address) -> bool:
    """
    @notice Whether what a key signs now counts as said by an account.
    @param owner The account.
    @param key The key's address.
    @return Whether.
    """
    return self._speaks_for(owner, key)


@external
@view
def anchored(owner: address, task: bytes32) -> bytes32:
    """
    @notice What a provider has anchored for a task.
    @param owner The provider.
    @param task The task.
    @return keccak256(abi.encode(root, count)), or zero where it has not.
    """
    return self.anchors[self._place(owner, task)]


@external
@view
def domain_separator() -> bytes32:
    """
    @notice The EIP-712 domain of what is signed for this registry.
    @return keccak256 of the encoded domain: "p2pcompute stake", "1", this chain, this contract.
    """
    return self._domain()
