"""Payment channels and their vouchers: `protocols/channel/README.md` is the specification."""

from ._close import (
    MAX_EPOCH as MAX_EPOCH,
)
from ._close import (
    CloseConsent as CloseConsent,
)
from ._close import (
    close_digest as close_digest,
)
from ._close import (
    recover_closer as recover_closer,
)
from ._messages import (
    MESSAGES as MESSAGES,
)
from ._messages import (
    PROTOCOL_ID as PROTOCOL_ID,
)
from ._messages import (
    ChannelHello as ChannelHello,
)
from ._messages import (
    ChannelSync as ChannelSync,
)
from ._messages import (
    CloseAsk as CloseAsk,
)
from ._messages import (
    ConsentFrame as ConsentFrame,
)
from ._messages import (
    ReceiptRef as ReceiptRef,
)
from ._messages import (
    VoucherAck as VoucherAck,
)
from ._messages import (
    VoucherFrame as VoucherFrame,
)
from ._messages import (
    VoucherRefusal as VoucherRefusal,
)
from ._state import (
    TABLE as TABLE,
)
from ._state import (
    ChannelConnection as ChannelConnection,
)
from ._state import (
    ChannelState as ChannelState,
)
from ._voucher import (
    Domain as Domain,
)
from ._voucher import (
    Voucher as Voucher,
)
from ._voucher import (
    channel_id as channel_id,
)
from ._voucher import (
    recover_signer as recover_signer,
)
from ._voucher import (
    sign_voucher as sign_voucher,
)
from ._voucher import (
    voucher_digest as voucher_digest,
)
