"""What a file holds, by dotted name, and what of it is no weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qdeq.files.torch_archive.limits import MAX_ENTRIES
from qdeq.files.torch_archive.tensors import StoredTensor
from qdeq.files.untrusted import refuse
from qdeq.state_dicts.parts import Cell, Packed
from qdeq.state_dicts.records import BESIDE, OPTIMIZER, Entry, could_be_weight, is_optimizer, records_among
from qdeq.state_dicts.rnn import RnnShape
from qdeq.weights.direct_conv import ConvGeometry
from qdeq.words import join

__all__ = ["Contents", "Level"]


@dataclass
class Contents:
    """Key -> tensor, packed parameters, number or None; and what was seen on the way.

    Attributes:
        sources: what there is.
        rnn_shapes: path of an RNN -> its layers and directions.
        dropped: key -> why it is left out.
        unread: key of something that holds weights and is of no known kind -> what it is.
        geometries: key of a convolution's weight or packed parameters -> how it was set up, where the file says it.
        everything: optimizer state and other records of a training count as weights, too.
        order: keys as they came.
        weights: how many of them could be weights.

    """

    sources: dict[str, Any] = field(default_factory=dict)
    rnn_shapes: dict[str, RnnShape] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    geometries: dict[str, ConvGeometry] = field(default_factory=dict)
    everything: bool = False
    order: list[str] = field(default_factory=list)
    weights: int = 0

    def put(self, where: str, key: str, value: Any) -> None:
        """Add a source; refuse a second one of the same key, and too many."""
        if key in self.sources or len(self.sources) >= MAX_ENTRIES:
            what = "keys that differ" if key in self.sources else f"at most {MAX_ENTRIES} keys"
            refuse(where, what, "the same key twice" if key in self.sources else "more")
        self.sources[key] = value
        self.order.append(key)
        stored = isinstance(value, StoredTensor)
        self.weights += could_be_weight(value.shape, value.dtype) if stored else isinstance(value, Packed | Cell)

    def leave_unread(self, key: str, what: str) -> None:
        """Note what cannot be read; it is a weight all the same."""
        self.unread[key] = what
        self.weights += 1

    def drop_optimizer(self, key: str, entries: dict[Any, Any]) -> bool:
        """Whether a mapping is the state of an optimizer that is left out."""
        found = not self.everything and is_optimizer(entries)
        if found:
            self.dropped[key or "optimizer"] = OPTIMIZER
        return found


class Level:
    """The entries of one mapping as they are walked through, to tell afterwards which of them are no weights."""

    def __init__(self, contents: Contents, key: str) -> None:
        self.contents, self.key = contents, key
        self.entries: list[Entry] = []
        self.spans: dict[str, slice] = {}
        self.begin()

    def begin(self) -> None:
        """The next entry is walked through now."""
        self.start, self.weights = len(self.contents.order), self.contents.weights

    def end(self, name: str, nested: bool) -> None:
        """The entry ``name`` is done."""
        self.spans[name] = slice(self.start, len(self.contents.order))
        self.entries.append(Entry(name, nested, self.contents.weights > self.weights))

    def leave_records(self) -> None:
        """Take out again what is no weight."""
        for record in records_among(() if self.contents.everything else self.entries):
            self.contents.dropped.setdefault(join(self.key, record.name), BESIDE)
            for source in self.contents.order[self.spans[record.name]]:
                del self.contents.sources[source]
