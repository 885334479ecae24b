"""How the names of one side become those of the other: prefixes and wrappers, found from both sides' own names.

Checkpoints put something in front of a model's names (``module.``, ``state_dict.model.``), torch's wrappers put a
segment in the middle (``encoder.module.conv.weight``), and either side may be the one that has it. What is taken for
the truth is decided by evidence: which names, with which shapes, meet.

1. Segments that torch's own wrappers add are left out on both sides, wherever they stand.
2. A front (``source``, ``target``) is a part of all names on one side at least that is replaced by another. The one
   under which most names meet with equal shapes is taken; names that are equal as they are win.
3. Further fronts are taken where they bring a part of the model that the first does not touch, whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qdeq.errors import refuse
from qdeq.words import join

__all__ = ["Renaming", "find_renaming", "front_of"]

Shapes = Mapping[str, tuple[int, ...]]
Front = tuple[str, str]

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch's wrappers call the module inside: DataParallel, QuantWrapper and AveragedModel; compile; FSDP."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # copies of models often lack them
_MAX_FRONT = 16  # segments; a hostile name has a million
_SHOWN = 3
_NONE: Front = ("", "")


@dataclass(frozen=True)
class Renaming:
    """From names of the source to names of the target; called with one, it gives the other.

    A name that was not among those compared (a bias without a counterpart, a constant, the path of a module) goes where
    its module goes, or the nearest module above it.

    Attributes:
        names: source -> target, of all names that meet.
        fronts: what begins a source's name -> what stands for it in the target.

    """

    names: dict[str, str]
    fronts: tuple[Front, ...]
    _paths: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str) -> str:
        """The name on the other side; the name itself where nothing is known of it."""
        if name in self.names:
            return self.names[name]
        path, rest = name, ""
        while path:
            if path in self._paths:
                return join(self._paths[path], rest) if rest else self._paths[path]
            path, _, last = path.rpartition(".")
            rest = join(last, rest) if rest else last
        short = _without_wrappers(name)
        front = next((front for front in self.fronts if short.startswith(front[0])), _NONE)
        return name if front == _NONE else front[1] + short.removeprefix(front[0])

    @property
    def text(self) -> str:
        """What was renamed, in words; empty where nothing was."""
        counts: dict[Front, int] = {}
        for source, target in self.names.items():
            if source != target:
                front = _fronts_apart(source, target)
                counts[front] = counts.get(front, 0) + 1
        if not counts:
            return ""
        listed = [f"{old!r} -> {new!r} ({count} names)" for (old, new), count in counts.items()]
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        return f"names begin otherwise: {', '.join(listed[:_SHOWN])}{more}"


def front_of(prefix: str) -> str:
    """What names below a dotted path begin with; empty for all names."""
    return f"{prefix.rstrip('.')}." if prefix.rstrip(".") else ""


def find_renaming(where: str, sources: Shapes, targets: Shapes, remedy: str, *, as_they_are: bool = False) -> Renaming:
    """Find how the names of ``sources`` become those of ``targets``.

    Args:
        where: argument, for errors.
        sources: name -> shape of every tensor of one side, by float names.
        targets: the same of the other side.
        remedy: what to do where two fronts fit, a sentence.
        as_they_are: nothing may be taken from the front of a source's name.

    Raises:
        QdeqValueError: two parts of the source fit the target equally, or the source two parts of the target.

    """
    plain_sources, plain_targets = _plain(sources), _plain(targets)
    found = _Meetings(
        {plain: sources[name] for name, plain in plain_sources.items()},
        {plain: targets[name] for name, plain in plain_targets.items()},
    )
    fronts = found.choose(where, remedy, as_they_are)
    raw_sources = {plain: name for name, plain in plain_sources.items()}
    raw_targets = {plain: name for name, plain in plain_targets.items()}
    pairs = {raw_sources[s]: raw_targets[t] for front in reversed(fronts) for s, t in found.meet[front].items()}
    by_length = tuple(sorted(fronts, key=lambda front: -len(front[0])))
    return Renaming(pairs, by_length, _module_paths(pairs))


class _Meetings:
    """Which sources and targets meet under which front."""

    def __init__(self, sources: Shapes, targets: Shapes) -> None:
        self.sources, self.targets = sources, targets
        self.meet: dict[Front, dict[str, str]] = {_NONE: {}}
        self._collect(sources, targets, swapped=False)
        self._collect(targets, sources, swapped=True)
        self.fitting = {front: self._same_shape(pairs) for front, pairs in self.meet.items()}
        self.shapes_meet = any(self.fitting.values())
        if not self.shapes_meet:  # then names with a path in them still say what was meant
            self.fitting = {
                front: {s: t for s, t in pairs.items() if "." in s[len(front[0]) :]}
                for front, pairs in self.meet.items()
            }

    def _collect(self, ones: Shapes, others: Shapes, *, swapped: bool) -> None:
        """Any front of ``ones``, and fronts that all ``others`` have."""
        by_rest: dict[str, list[str]] = {}
        for front in _common_fronts(others):
            for name in others:
                by_rest.setdefault(name[len(front) :], []).append(name)
        for one in ones:
            for front in _fronts(one):
                for other in by_rest.get(one[len(front) :], ()):
                    source, target = (other, one) if swapped else (one, other)
                    self.meet.setdefault(_fronts_apart(source, target), {})[source] = target

    def _same_shape(self, pairs: dict[str, str]) -> dict[str, str]:
        return {s: t for s, t in pairs.items() if self.sources[s] == self.targets[t]}

    def choose(self, where: str, remedy: str, as_they_are: bool) -> list[Front]:
        """The front, or the fronts of several parts, the most important first."""
        known = [front for front in self.fitting if not (as_they_are and front[0])]
        order = sorted(known, key=lambda front: (-len(self.fitting[front]), len(front[0]) + len(front[1]), front))
        best = order[0]
        as_are = set(self.fitting[_NONE].values())
        if _core(self.targets) <= as_are or not as_are <= set(self.fitting[best].values()):
            return [_NONE]  # another front would mix an auxiliary part of the source into the model
        rivals = [front for front in order[1:] if self._is_rival(front, best)]
        if rivals and self.shapes_meet:
            self._refuse(where, [best, *rivals], remedy)
        if best == _NONE:
            return [best]
        parts = [best]
        for front in order[1:]:
            if front != _NONE and self._is_another_part(front, parts):
                parts.append(front)
        return parts

    def _is_rival(self, front: Front, best: Front) -> bool:
        mine, theirs = self.fitting[front], self.fitting[best]
        return bool(mine) and (_core(theirs.values()) <= set(mine.values()) or _core(theirs) <= set(mine))

    def _is_another_part(self, front: Front, parts: list[Front]) -> bool:
        mine = self.fitting[front]
        apart = all(
            not set(mine) & set(self.meet[part]) and not set(mine.values()) & set(self.meet[part].values())
            for part in parts
        )
        whole = sum(name.startswith(front[0]) for name in self.sources) == len(mine)
        return bool(mine) and apart and whole and front[1] == parts[0][1]

    def _refuse(self, where: str, fronts: list[Front], remedy: str) -> None:
        at = 1 if len({front[0] for front in fronts}) == 1 else 0
        side = ("the source", "the target")[at]
        listed = ", ".join(repr(front[at]) for front in sorted(fronts))
        refuse(where, f"one part of {side} that fits", f"{len(fronts)}: below {listed}", remedy)


def _core(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.endswith(_STATISTICS)}


def _without_wrappers(name: str) -> str:
    path, _, last = name.rpartition(".")
    return join(".".join(part for part in path.split(".") if part not in WRAPPERS), last)


def _plain(names: Iterable[str]) -> dict[str, str]:
    """Name -> name without torch's wrappers; names that would become one stay as they are."""
    short = {name: _without_wrappers(name) for name in names}
    counts: dict[str, int] = {}
    for plain in short.values():
        counts[plain] = counts.get(plain, 0) + 1
    return {name: plain if counts[plain] == 1 else name for name, plain in short.items()}


def _fronts(name: str) -> Iterator[str]:
    """What may be taken from the front of a name: nothing, ``a.``, ``a.b.``, ..."""
    yield ""
    at = name.find(".")
    for _ in range(_MAX_FRONT):
        if at < 0:
            return
        yield name[: at + 1]
        at = name.find(".", at + 1)


def _common_fronts(names: Iterable[str]) -> list[str]:
    listed = list(names)
    if not listed:
        return []
    low, high = min(listed), max(listed)
    return [front for front in _fronts(low) if high.startswith(front)]


def _fronts_apart(source: str, target: str) -> Front:
    """What is left of two names without the segments that both end with."""
    ones, others = source.split("."), target.split(".")
    while ones and others and ones[-1] == others[-1]:
        ones.pop()
        others.pop()
    return "".join(part + "." for part in ones), "".join(part + "." for part in others)


def _module_paths(pairs: Mapping[str, str]) -> dict[str, str]:
    """Path of a module of the source -> of the target, for all modules that hold what meets."""
    paths: dict[str, str] = {}
    for source, target in pairs.items():
        one, other = source.rpartition(".")[0], target.rpartition(".")[0]
        while one and one not in paths:
            paths[one] = other
            above, _, last = one.rpartition(".")
            path, _, name = other.rpartition(".")
            if last != name:
                break
            one, other = above, path
    return paths
