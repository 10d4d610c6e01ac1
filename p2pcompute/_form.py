"""The ways to say one kernel: as its author wrote it, and rewritten for what it is bound to."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from p2pcompute.errors import KernelError
from p2pcompute.execution._api import KernelSource
from p2pcompute.execution._guard import Admitted, admit_tree
from p2pcompute.execution._language import MAX_SOURCE_BYTES
from p2pcompute.execution._language_capture import source_digest

__all__ = ["Form"]

Rewriting: TypeAlias = Callable[[ast.Module, Admitted], ast.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to say a kernel: as its author wrote it, or rewritten for what it is bound to."""

    source: KernelSource
    tree: ast.Module = field(repr=False)  # with the author's lines
    filenames: Mapping[str, str] = field(repr=False)
    admitted: Admitted = field(repr=False)

    @classmethod
    def of(cls, source: KernelSource, tree: ast.Module, filenames: Mapping[str, str]) -> Form:
        """Admit it."""
        admitted = admit_tree(tree, source.entry, filenames)
        if len(source.text.encode()) > MAX_SOURCE_BYTES:
            raise KernelError(
                f"the kernel's source is longer than {MAX_SOURCE_BYTES} bytes", instead="split the kernel"
            )
        return cls(source=source, tree=tree, filenames=filenames, admitted=admitted)

    @classmethod
    def made(cls, tree: ast.Module, entry: str, filenames: Mapping[str, str]) -> Form:
        """Admit what a rewriting has made, with a text and a digest of its own."""
        text = ast.unparse(tree) + "\n"
        return cls.of(KernelSource(text=text, entry=entry, digest=source_digest(entry, text)), tree, filenames)

    def rewritten(self, rewriting: Rewriting) -> Form:
        """What a rewriting makes of it, admitted anew."""
        return Form.made(rewriting(self.tree, self.admitted), self.source.entry, self.filenames)
