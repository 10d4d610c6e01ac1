"""The ways to say one kernel: as its author wrote it, and rewritten for what it is bound to."""

from __future__ import annotations

import ast
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from p2pcompute.errors import KernelError
from p2pcompute.execution._api import KernelSource
from p2pcompute.execution._guard import Admitted, admit_tree
from p2pcompute.execution._language import MAX_SOURCE_BYTES
from p2pcompute.execution._language_capture import source_digest

__all__ = ["Form", "Variants"]

_KEPT: Final = 64  # variants of one kernel

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


class Variants:
    """The forms that were made of one kernel; of too many the one that was longest not asked for is forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Form] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Form]) -> Form:
        """The form of this key, made where it is not there."""
        form = self._known.get(key)
        if form is None:
            form = self._known[key] = make()
        self._known.move_to_end(key)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return form
