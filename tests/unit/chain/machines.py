"""How much the state machines of the contracts do.

The suite runs a bounded size. `make contracts-nightly` sets P2PCOMPUTE_CONTRACT_EXAMPLES=10000 and
P2PCOMPUTE_CONTRACT_STEPS=500. P2PCOMPUTE_NO_SHRINK leaves a counterexample as it was found.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings


def limits(examples: int, steps: int) -> settings:
    """Settings for a machine that has this size where the environment asks for no other."""
    phases = set(Phase) - ({Phase.shrink, Phase.explain} if "P2PCOMPUTE_NO_SHRINK" in os.environ else set())
    return settings(
        phases=phases,
        max_examples=int(os.environ.get("P2PCOMPUTE_CONTRACT_EXAMPLES", examples)),
        stateful_step_count=int(os.environ.get("P2PCOMPUTE_CONTRACT_STEPS", steps)),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
