"""Evidence that anybody can check: `protocols/evidence/README.md` is the specification."""

from ._file import (
    Evidence as Evidence,
)
from ._file import (
    open_evidence as open_evidence,
)
from ._messages import (
    ACCUSATION_KIND as ACCUSATION_KIND,
)
from ._messages import (
    Accusation as Accusation,
)
from ._messages import (
    EvidenceFile as EvidenceFile,
)
from ._messages import (
    seal_accusation as seal_accusation,
)
from ._rounds import (
    RoundClaim as RoundClaim,
)
from ._rounds import (
    chunks_of_round as chunks_of_round,
)
