"""Checking results of peers: private samples, what they find, and evidence of what was found."""

from ._bisection import (
    Bisection as Bisection,
)
from ._bisection import (
    Challenger as Challenger,
)
from ._bisection import (
    Defender as Defender,
)
from ._bisection import (
    Finding as Finding,
)
from ._bisection import (
    SearchState as SearchState,
)
from ._evidence import (
    EVIDENCE_SUFFIX as EVIDENCE_SUFFIX,
)
from ._evidence import (
    PLEDGE_SUFFIX as PLEDGE_SUFFIX,
)
from ._evidence import (
    EvidenceStore as EvidenceStore,
)
from ._evidence import (
    can_be_judged as can_be_judged,
)
from ._evidence import (
    read_evidence as read_evidence,
)
from ._evidence import (
    receipted_round_evidence as receipted_round_evidence,
)
from ._evidence import (
    result_evidence as result_evidence,
)
from ._evidence import (
    round_evidence as round_evidence,
)
from ._evidence import (
    two_results_evidence as two_results_evidence,
)
from ._freivalds import (
    FreivaldsScreen as FreivaldsScreen,
)
from ._freivalds import (
    ProductSampler as ProductSampler,
)
from ._freivalds import (
    product_tolerance as product_tolerance,
)
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
from ._quorum import (
    ChunkState as ChunkState,
)
from ._quorum import (
    Quorum as Quorum,
)
from ._quorum import (
    Ruling as Ruling,
)
from ._quorum import (
    draw_doubled as draw_doubled,
)
from ._rounds import (
    RoundSampler as RoundSampler,
)
from ._sampling import (
    DEFAULT_SAMPLES as DEFAULT_SAMPLES,
)
from ._sampling import (
    DeliveredChunk as DeliveredChunk,
)
from ._sampling import (
    Rehearsal as Rehearsal,
)
from ._sampling import (
    Sampler as Sampler,
)
from ._sampling import (
    SampleReport as SampleReport,
)
from ._sampling import (
    SampleRuns as SampleRuns,
)
from ._sampling import (
    block_samples as block_samples,
)
from ._sampling import (
    chunk_samples as chunk_samples,
)
from ._sampling import (
    draw_threads as draw_threads,
)
from ._sampling import (
    sampled_every as sampled_every,
)
from ._tolerance import (
    DEFAULT_TOLERANCE as DEFAULT_TOLERANCE,
)
from ._tolerance import (
    alike as alike,
)
from ._tolerance import (
    outside as outside,
)
from ._tolerance import (
    outside_rows as outside_rows,
)
from ._tolerance import (
    rows_of as rows_of,
)
from ._verdict import (
    Verdict as Verdict,
)
from ._verdict import (
    verify_evidence as verify_evidence,
)
