"""Checking results of peers: private samples now; quorum and bisection share this place."""

from ._power import (
    chance_over_chunks as chance_over_chunks,
)
from ._power import (
    chance_to_catch as chance_to_catch,
)
from ._power import (
    cost_share as cost_share,
)
from ._power import (
    faked_elements as faked_elements,
)
from ._power import (
    samples_for as samples_for,
)
from ._sampling import (
    DEFAULT_SAMPLES as DEFAULT_SAMPLES,
)
from ._sampling import (
    Sampler as Sampler,
)
from ._sampling import (
    SampleReport as SampleReport,
)
from ._sampling import (
    block_samples as block_samples,
)
from ._sampling import (
    draw_threads as draw_threads,
)
