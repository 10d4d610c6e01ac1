"""Tasks: the requester's coordinator and the provider's session, over small interfaces (`_api`)."""

from ._api import (
    ChunkRun as ChunkRun,
)
from ._api import (
    ProviderAccount as ProviderAccount,
)
from ._api import (
    ProviderBooks as ProviderBooks,
)
from ._api import (
    RequesterAccount as RequesterAccount,
)
from ._api import (
    RequesterBooks as RequesterBooks,
)
from ._api import (
    Workers as Workers,
)
from ._coordinator import (
    Coordinator as Coordinator,
)
from ._coordinator import (
    TaskRequest as TaskRequest,
)
from ._events import (
    Agreed as Agreed,
)
from ._events import (
    ChunkAssigned as ChunkAssigned,
)
from ._events import (
    ChunkDone as ChunkDone,
)
from ._events import (
    ChunkRejected as ChunkRejected,
)
from ._events import (
    Compiling as Compiling,
)
from ._events import (
    LiarCaught as LiarCaught,
)
from ._events import (
    Paid as Paid,
)
from ._events import (
    ProviderLost as ProviderLost,
)
from ._events import (
    ProviderReady as ProviderReady,
)
from ._events import (
    ProviderRefused as ProviderRefused,
)
from ._events import (
    SecondCopyHere as SecondCopyHere,
)
from ._events import (
    TaskEnded as TaskEnded,
)
from ._events import (
    TaskEvent as TaskEvent,
)
from ._events import (
    TaskStarted as TaskStarted,
)
from ._events import (
    WaitingForProviders as WaitingForProviders,
)
from ._places import Guest as Guest
from ._provider import (
    TaskService as TaskService,
)
from ._scheduler import ChunkScheduler as ChunkScheduler
from ._usage import (
    ActiveTask as ActiveTask,
)
from ._usage import (
    Usage as Usage,
)
