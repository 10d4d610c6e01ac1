"""Inputs from whoever holds them: fetched in pieces from several peers, served to those with a ticket, kept on disk.

`protocols/blob/README.md` is the specification of what is said.
"""

from ._cache import BlobCache as BlobCache
from ._cache import BlobRuns as BlobRuns
from ._cache import CachedBlob as CachedBlob
from ._cache import in_thread as in_thread
from ._fetch import BlobFetch as BlobFetch
from ._fetch import FetchFailed as FetchFailed
from ._fetch import Source as Source
from ._fetch import WrongRoot as WrongRoot
from ._held import BlobName as BlobName
from ._held import Bytes as Bytes
from ._held import Content as Content
from ._held import HeldBlob as HeldBlob
from ._held import digest_of as digest_of
from ._held import leaves_of as leaves_of
from ._server import BlobServer as BlobServer
from ._server import ServerLimits as ServerLimits
