"""Checking results of peers: private samples now; quorum and bisection share this place."""

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
