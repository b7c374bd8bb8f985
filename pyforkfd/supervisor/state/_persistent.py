"""Collections of which a changed copy shares nearly everything with the one before.

A state keeps its own collections for ever.  A copy of a dict costs what the dict holds; a copy of
a :class:`Table`, or another :class:`Heap`, does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

V = TypeVar("V")
E = TypeVar("E", bound=tuple[Any, ...])

_BITS = 6  # of a key that are its place in a block: 64 values


class Table(Mapping[int, V]):
    """A mapping of integers, in blocks that are copied when they are first changed."""

    __slots__ = ("_blocks", "_own", "_size")

    def __init__(self, values: Mapping[int, V] | None = None) -> None:
        """Copy a mapping; None: begin with an empty one."""
        self._blocks: dict[int, dict[int, V]] = {}
        self._own: set[int] = set()  # numbers of the blocks that no other table has
        self._size = 0
        for key, value in (values or {}).items():
            self[key] = value

    def branch(self) -> Table[V]:
        """Return a copy; this table must not be changed any more."""
        copy: Table[V] = Table()
        copy._blocks, copy._size = dict(self._blocks), self._size
        return copy

    def _block(self, number: int) -> dict[int, V]:
        """Return a block that may be changed."""
        block = self._blocks.get(number)
        if block is None or number not in self._own:
            block = self._blocks[number] = {} if block is None else dict(block)
            self._own.add(number)
        return block

    def __setitem__(self, key: int, value: V) -> None:
        block = self._block(key >> _BITS)
        self._size += key not in block
        block[key] = value

    def __delitem__(self, key: int) -> None:
        number = key >> _BITS
        if key not in self._blocks.get(number, ()):
            raise KeyError(key)
        block = self._block(number)
        del block[key]
        self._size -= 1
        if not block:
            del self._blocks[number]

    def __getitem__(self, key: int) -> V:
        return self._blocks[key >> _BITS][key]

    def get(self, key: int, default: Any = None) -> Any:
        """Return a value; the default where there is none."""
        block = self._blocks.get(key >> _BITS)
        return default if block is None else block.get(key, default)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and key in self._blocks.get(key >> _BITS, ())

    def __iter__(self) -> Iterator[int]:
        for block in self._blocks.values():
            yield from block

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"Table({dict(self.items())!r})"


_Node: TypeAlias = "tuple[E, _Children[E]]"
_Children: TypeAlias = "tuple[_Node[E], _Children[E]] | None"


class Heap(Generic[E]):
    """A pairing heap of tuples, the least first.  It is never changed: methods return another.

    A push is one comparison, a removal of the least O(log n) on average.  See Fredman et al.,
    "The pairing heap: a new form of self-adjusting heap", Algorithmica 1 (1986).
    """

    __slots__ = ("_root", "size")

    def __init__(self, root: _Node[E] | None = None, size: int = 0) -> None:
        """Begin with an empty heap."""
        self._root = root
        self.size = size

    @property
    def first(self) -> E | None:
        """The least entry; None: there is none."""
        return None if self._root is None else self._root[0]

    def push(self, entry: E) -> Heap[E]:
        """Return a heap with one more entry."""
        node: _Node[E] = (entry, None)
        return Heap(node if self._root is None else _meld(self._root, node), self.size + 1)

    def pop(self) -> Heap[E]:
        """Return a heap without the least entry.

        Raises:
            IndexError: there is none.
        """
        if self._root is None:
            raise IndexError("pop from an empty heap")
        pairs = []
        rest = self._root[1]
        while rest is not None:
            node, rest = rest
            if rest is not None:
                other, rest = rest
                node = _meld(node, other)
            pairs.append(node)
        root: _Node[E] | None = None
        while pairs:
            node = pairs.pop()
            root = node if root is None else _meld(root, node)
        return Heap(root, self.size - 1)

    def __iter__(self) -> Iterator[E]:
        """Yield all entries, in no order."""
        left = [] if self._root is None else [self._root]
        while left:
            entry, rest = left.pop()
            yield entry
            while rest is not None:
                node, rest = rest
                left.append(node)


def _meld(one: _Node[E], other: _Node[E]) -> _Node[E]:
    """Join two heaps."""
    if other[0] < one[0]:
        one, other = other, one
    return one[0], (other, one[1])
