"""Capability ads: `protocols/ads/README.md` is the specification."""

from ._ad import (
    open_ad as open_ad,
)
from ._ad import (
    seal_ad as seal_ad,
)
from ._messages import (
    MESSAGES as MESSAGES,
)
from ._messages import (
    PROTOCOL_ID as PROTOCOL_ID,
)
from ._messages import (
    SHARDS as SHARDS,
)
from ._messages import (
    AdBatch as AdBatch,
)
from ._messages import (
    AdQuery as AdQuery,
)
from ._messages import (
    AdRefusal as AdRefusal,
)
from ._messages import (
    Availability as Availability,
)
from ._messages import (
    CapabilityAd as CapabilityAd,
)
from ._messages import (
    Device as Device,
)
from ._messages import (
    PricedOption as PricedOption,
)
from ._messages import (
    bucket_key as bucket_key,
)
from ._messages import (
    gossip_topic as gossip_topic,
)
from ._messages import (
    record_key as record_key,
)
from ._messages import (
    shard_of as shard_of,
)
from ._state import (
    TABLE as TABLE,
)
from ._state import (
    AdsConnection as AdsConnection,
)
from ._state import (
    AdsState as AdsState,
)
