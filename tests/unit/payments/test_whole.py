"""Two nodes, the chain and an adversary as one machine: any history of the rules in `whole_acts.py`, in virtual time,
on the hub's real bytecode. The honest end with what they are owed to within one credit window and pay no more than
they accepted; the hub's invariants (docs/contracts.md) hold after each act.

`make adversary-nightly` takes many more histories, and longer ones.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import hypothesis
import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, Phase, given, settings

from p2pcompute.payments import PUBLIC_CHAIN

from ..chain.weakened import Case, Compiler, needs_compiler
from . import whole
from .whole_acts import RULES, Act, play
from .whole_attacks import ATTACKS, PHRASES, SINGLE, TOURS, Attack
from .whole_mallory import FORGERIES

EXAMPLES = int(os.environ.get("P2PCOMPUTE_ADVERSARY_EXAMPLES", "18"))
PHRASES_MOST = int(os.environ.get("P2PCOMPUTE_ADVERSARY_PHRASES", "14"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """An endpoint that is down for most of a day is worth a line each round, and not in a test's report."""
    log = logging.getLogger("p2pcompute.payments")
    kept = log.level
    log.setLevel(logging.ERROR)  # and not its attribute: loggers below remember what they have let pass
    yield
    log.setLevel(kept)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    made = Compiler()
    yield made
    made.close()


def run(acts: Sequence[Act], token: str = "plain", *, hub_code: bytes | None = None) -> Counter[str]:
    """A history in a world of its own; what was done in it, by rule."""
    taken: Counter[str] = Counter()

    async def main() -> None:
        world = whole.Whole(token, hub_code=hub_code)
        await play(world, acts)
        taken.update(world.taken)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return taken


def robbed(attack: Attack, *, hub_code: bytes | None = None) -> tuple[type[BaseException], str]:
    """The one error that a history ends with, and what it says."""
    with pytest.raises((Exception, BaseExceptionGroup)) as caught:
        run(attack.acts, attack.token, hub_code=hub_code)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return type(error), str(error)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_costs_no_more_than_a_window(attack: Attack) -> None:
    with whole.short_rounds():
        taken = run(attack.acts, attack.token)
    assert not [rule for rule in attack.rules if not taken[rule]]


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.off], ids=lambda attack: attack.name)
def test_it_succeeds_where_the_nodes_lack_the_defence(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attack.off is not None
    # The patches are undone within: what one of them found is put back, and the constant of `short_rounds` after it.
    with whole.short_rounds(), monkeypatch.context() as patch:
        attack.off(patch)
        assert robbed(attack) == (attack.raises, attack.robbed)


@needs_compiler
@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.edits], ids=lambda attack: attack.name)
def test_it_succeeds_where_the_contract_lacks_the_defence(attack: Attack, compiler: Compiler) -> None:
    code = compiler.without("ChannelHub", Case(attack=robbed, without=attack.edits))
    with whole.short_rounds():
        assert robbed(attack, hub_code=code) == (attack.raises, attack.robbed)


def test_every_attack_is_tried_without_its_defence() -> None:
    """But one: a signature of 64 bytes fails at the decoder, and again where it is recovered."""
    assert [attack.name for attack in ATTACKS if not attack.off and not attack.edits] == ["64 bytes"]
    assert all(attack.robbed for attack in ATTACKS if attack.off or attack.edits)
    assert set(FORGERIES) <= {attack.name for attack in ATTACKS}


def test_what_counts_on_a_public_chain_can_not_be_taken_back_with_twelve_blocks() -> None:
    """Of a deposit that twelve blocks can take back no more counts than a stranger may owe; nor is a transaction
    settled. The machine's policy is the same with smaller amounts."""
    assert PUBLIC_CHAIN.whole == whole.CAREFUL.whole == 13
    assert PUBLIC_CHAIN.steps == ((1, 50_000),)


HISTORIES = st.lists(
    st.one_of(
        st.sampled_from(PHRASES),
        st.builds(lambda rule, how: ((rule, how),), st.sampled_from(SINGLE), st.integers(0, 23)),
    ),
    min_size=PHRASES_MOST // 2,
    max_size=PHRASES_MOST,
).map(lambda parts: [act for part in parts for act in part])
TOKENS = st.sampled_from(["plain", "plain", "QuietToken", "HostileToken"])


@pytest.mark.timeout(0 if "P2PCOMPUTE_ADVERSARY_EXAMPLES" in os.environ else 1200)
def test_the_honest_end_with_what_they_are_owed_whatever_happens() -> None:
    """Any history; and each rule was really taken in those that a test takes."""
    taken: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        # The same histories in every run of the suite; a night takes new ones.
        derandomize="P2PCOMPUTE_ADVERSARY_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=True,
    )
    @given(acts=HISTORIES, token=TOKENS)
    def histories(acts: list[Act], token: str) -> None:
        found = run(acts, token)
        for rule in found:
            hypothesis.event(rule)
        taken.update(found)

    with whole.short_rounds():
        for tour, token in TOURS:
            taken.update(run(tour, token))
        missing = [rule for rule in RULES if not taken[rule]]
        histories()
    sys.stdout.write("".join(f"{taken[rule]:7} {rule}\n" for rule in RULES))  # for whoever runs it by night
    assert not missing
