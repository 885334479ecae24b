"""From a read pickle to the tensors it describes, by dotted name: state dicts, checkpoints, whole models, scripts.

Sources: ``torch.nn.Module.__reduce__`` (the instance dict), ``torch/ao/nn/quantized/modules/conv.py``
(``__getstate__``), ``torch/fx/graph_module.py`` (``reduce_graph_module``); packed parameters:
:mod:`qdeq.weights.packed_state`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qdeq.files.torch_archive.contents import Contents, Level
from qdeq.files.torch_archive.limits import MAX_DEPTH, MAX_NODES, MAX_SHARES
from qdeq.files.torch_archive.pickled import Call, Global, Instance, Persistent
from qdeq.files.torch_archive.storages import StorageReader
from qdeq.files.torch_archive.tensors import StoredTensor, tensor_from
from qdeq.files.untrusted import refuse, shown
from qdeq.state_dicts.naming import CONSTANTS
from qdeq.state_dicts.parts import Cell, Packed
from qdeq.state_dicts.rnn import RnnShape
from qdeq.weights import packed_state
from qdeq.weights.direct_conv import ConvGeometry

__all__ = ["collect"]

_PYTHON_STATE = ("_parameters", "_buffers", "_modules")
_CONV_WEIGHT, _CONV_BIAS, _CONV_SCALE, _CONV_ZERO_POINT = 10, 11, 12, 13  # places in quantized convs' state tuple
_CONTAINERS = (dict, list, tuple, Instance)  # tuples: a union is built anew at every use, which is slow
_PLAIN = (str, int, float, bytes, Global)
_MAX_CONFIG = 64  # numbers that describe a packed convolution


def collect(path: str, top: object, reader: StorageReader, prefix: str, into: Contents) -> None:
    """Flatten what a pickle describes.

    Args:
        path: the file, for errors.
        top: the description that :func:`~qdeq.files.torch_archive.unpickler.read_pickle` returned.
        reader: gives the storages.
        prefix: goes before every key.
        into: contents to add to.

    Raises:
        QdeqValueError: too deep, too large, or a tensor that does not fit the file.

    """
    _Walk(path, reader, into).visit(prefix, top, 0)


class _Walk:
    def __init__(self, path: str, reader: StorageReader, contents: Contents) -> None:
        self.path, self.reader, self.contents = path, reader, contents
        self.nodes = 0
        self.tensors: dict[int, StoredTensor] = {}
        self.open: set[int] = set()
        self.visits: dict[int, int] = {}

    def where(self, key: str) -> str:
        return f"{self.path}: {shown(key)[1:-1]}" if key else self.path

    def put(self, key: str, value: Any) -> None:
        self.contents.put(self.where(key), key, value)

    def tensor(self, key: str, value: object) -> StoredTensor | None:
        """Describe a rebuild call once, however often it is referred to."""
        if not isinstance(value, Call):
            return None
        if id(value) not in self.tensors:
            found = tensor_from(self.where(key), value, self.reader)
            if found is None:
                return None
            self.tensors[id(value)] = found
        return self.tensors[id(value)]

    def visit(self, key: str, value: Any, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            what = f"at most {MAX_DEPTH} levels and {MAX_NODES} values"
            refuse(self.where(key[:200]), what, "more", "Save the state_dict() alone.")
        if id(value) in self.open:
            return  # a container that holds itself
        tensor = self.tensor(key, value)
        if tensor is not None:
            self.put(key or "tensor", tensor)
            return
        if isinstance(value, _CONTAINERS):
            self._count(key, value)
            self.open.add(id(value))
            self._container(key, value, depth)
            self.open.discard(id(value))
        elif value is None:
            if key.rsplit(".", 1)[-1] in ("bias", "weight"):
                self.put(key, None)
        elif isinstance(value, Persistent):
            self.contents.dropped[key] = "a bare storage without shape"

    def _count(self, key: str, value: Any) -> None:
        """Refuse containers that share one another a thousandfold, which unfold without end."""
        visits = self.visits[id(value)] = self.visits.get(id(value), 0) + 1
        if visits > MAX_SHARES and not (isinstance(value, tuple) and not value):
            refuse(self.where(key[:200]), f"a container in at most {MAX_SHARES} places", "more")

    def _container(self, key: str, value: Any, depth: int) -> None:
        if isinstance(value, Instance):
            self._instance(key, value, depth)
        elif isinstance(value, tuple) and key.endswith("_packed_params._packed_params"):
            self.put(key, self._pair(key, value))
        elif isinstance(value, dict):
            self._mapping(key, value, depth)
        else:
            for at, item in enumerate(value):
                self._child(key, str(at), item, depth)

    def _mapping(self, key: str, value: dict[Any, Any], depth: int) -> None:
        if self.contents.drop_optimizer(key, value):
            return
        level = Level(self.contents, key)
        for name, item in value.items():
            if isinstance(name, str | int):
                level.begin()
                self._child(key, str(name), item, depth)
                if item is not None:
                    level.end(str(name), _is_nested(item))
            elif isinstance(item, _CONTAINERS):
                self.contents.dropped[f"{key}.(a key that is no text)"] = "no name to call it by"
        level.leave_records()

    def _child(self, key: str, name: str, item: Any, depth: int) -> None:
        if isinstance(item, _PLAIN) and not isinstance(item, bool):
            if not self._is_qparam(name, item):
                return
            self.put(f"{key}.{name}" if key else name, item)
            return
        self.visit(f"{key}.{name}" if key else name, item, depth + 1)

    @staticmethod
    def _is_qparam(name: str, item: Any) -> bool:
        return isinstance(item, int | float) and name.rstrip("_0123456789").endswith(("scale", "zero_point"))

    def _instance(self, key: str, value: Instance, depth: int) -> None:
        state = value.state
        if value.cls.name == "ScriptObject" and isinstance(state, tuple) and len(state) == 2:
            self._script_object(key, state[1], state[0])
        elif value.cls.module.startswith("__torch__.torch.classes"):
            self._script_object(key, str(value.cls), state)
        elif isinstance(value, Call) and value.cls.module == "torch.fx.graph_module" and value.args:
            if isinstance(value.args[0], dict):
                self._module(key, value, value.args[0], depth)
        elif isinstance(state, tuple) and len(state) > _CONV_ZERO_POINT and ".conv" in value.cls.module.lower():
            self._conv(key, state)
        elif isinstance(state, dict):
            if not self.contents.drop_optimizer(key, state):
                self._module(key, value, state, depth)
        elif isinstance(state, tuple | list):
            self.visit(f"{key}.state" if key else "state", state, depth + 1)
        elif value.items:
            self.visit(key, value.items, depth + 1)
        elif value.elements:
            self.visit(key, value.elements, depth + 1)
        else:
            for at, item in enumerate(value.args):
                if isinstance(item, _CONTAINERS):
                    self.visit(f"{key}.{at}" if key else str(at), item, depth + 1)

    def _module(self, key: str, value: Instance, state: dict[Any, Any], depth: int) -> None:
        """Walk a module by its instance dict (a pickle) or its attributes (a script)."""
        self._note_rnn(key, state)
        python = "_modules" in state
        transient = state.get("_non_persistent_buffers_set") or ()
        for name in _PYTHON_STATE if python else ():
            members = state.get(name)
            for child, item in members.items() if isinstance(members, dict) else ():
                if isinstance(child, str) and not (name == "_buffers" and child in transient):
                    self._child(key, child, item, depth)
        script = value.cls.module.startswith("__torch__")
        for name, item in state.items():
            if not isinstance(name, str) or name in _PYTHON_STATE:
                continue
            full = f"{key}.{name}" if key else name
            tensor = self.tensor(full, item)
            if tensor is not None and python and tensor.qscheme is None:
                self.contents.dropped[full] = "an attribute, not a parameter or buffer"
            elif tensor is not None:
                self.put(full, tensor)
            elif self._is_known_number(name, item, value.cls, python):
                self.put(full, item)
            elif (isinstance(item, Instance) and (script or not python or item.cls.name == "ScriptObject")) or (
                not python and isinstance(item, dict | list | tuple)
            ):
                self.visit(full, item, depth + 1)

    def _is_known_number(self, name: str, item: Any, cls: Global, python: bool) -> bool:
        """Whether an attribute is the quantization of an output, or a constant of an activation."""
        if name in CONSTANTS:
            return cls.name in ("ELU", "LeakyReLU") and isinstance(item, int | float)
        return self._is_qparam(name, item) and ("quantized" in str(cls) or python)

    def _note_rnn(self, key: str, state: dict[Any, Any]) -> None:
        layers, both = state.get("num_layers"), state.get("bidirectional")
        if isinstance(layers, int) and isinstance(both, bool):
            self.contents.rnn_shapes[key] = RnnShape(layers, both)

    def _conv(self, key: str, state: tuple[Any, ...]) -> None:
        prefix = f"{key}." if key else ""
        weight = self._need(prefix + "weight", state[_CONV_WEIGHT])
        self.put(prefix + "weight", weight)
        bias = self.tensor(prefix + "bias", state[_CONV_BIAS])
        self.put(prefix + "bias", bias)
        self.put(prefix + "scale", state[_CONV_SCALE])
        self.put(prefix + "zero_point", state[_CONV_ZERO_POINT])
        stride, padding, dilation, transposed, groups = state[3], state[4], state[5], state[6], state[8]
        sizes = (stride, padding, dilation)
        if all(isinstance(size, tuple) and all(isinstance(n, int) for n in size) for size in sizes):
            geometry = ConvGeometry(transposed is True, *sizes, groups)
            self.contents.geometries[prefix + "weight"] = geometry

    def _need(self, key: str, value: object) -> StoredTensor:
        tensor = self.tensor(key, value)
        if tensor is None:
            refuse(self.where(key), "a weight", shown(type(value).__name__))
        return tensor

    def _pair(self, key: str, value: Any) -> Packed:
        """``(weight, bias)`` of a linear; a sparse one adds its block sizes."""
        parts = packed_state.linear_parts(value)
        if parts is None:
            refuse(self.where(key), "a weight and a bias", shown(type(value).__name__))
        return Packed(self._need(key, parts[0]), None if parts[1] is None else self._need(key, parts[1]))

    def _script_object(self, key: str, class_name: object, state: Any) -> None:
        kind = packed_state.packed_kind(class_name) if isinstance(class_name, str) else ""
        if kind in (packed_state.LINEAR, packed_state.SPARSE_LINEAR):
            self.put(key, self._pair(key, state))
        elif kind in (packed_state.CONV2D, packed_state.CONV3D):
            self.put(key, self._conv_params(key, state))
        elif kind == packed_state.EMBEDDING:
            weight = packed_state.embedding_weight(state)
            if weight is None:
                refuse(self.where(key), "packed parameters of an embedding", "something else")
            self.put(key, Packed(self._need(key, weight), None))
        elif kind == packed_state.CELL:
            self.put(key, self._cell(key, state))
        else:
            remedy = "Save the state_dict() of the eager model."
            refuse(self.where(key), "packed parameters of a known class", shown(class_name), remedy)

    def _conv_params(self, key: str, state: Any) -> Packed:
        parts = packed_state.conv_parts(state)
        if parts is None or (parts[2] is None and not isinstance(parts[0], Call)):
            refuse(self.where(key), "convolution parameters of version 1, 2 or 3", "another layout")
        weight, bias, config = parts
        if config is not None and not isinstance(config, list):
            described = self._need(key, config)
            numbers = described.read(self.where(key)) if described.numel <= _MAX_CONFIG else None
            config = numbers.reshape(-1).tolist() if isinstance(numbers, Tensor) else []
        geometry = packed_state.conv_geometry(config or [])
        if geometry is not None:
            self.contents.geometries[key] = geometry
        return self._pair(key, (weight, bias))

    def _cell(self, key: str, state: Any) -> Cell:
        packed = packed_state.cell_parts(state)
        if packed is None:
            kind = state[0] if isinstance(state, tuple) and len(state) == 5 else None
            refuse(self.where(key), "a quantized_dynamic or quantized_fp16 cell", shown(kind))
        ih, hh = (self._pair(key, _state_of(item)) for item in packed)
        return Cell(ih, hh)


def _is_nested(item: object) -> bool:
    """Whether an entry is a mapping or an object of its own, such as a model."""
    return isinstance(item, dict) or (isinstance(item, Instance) and (isinstance(item.state, dict) or bool(item.items)))


def _state_of(item: object) -> Any:
    """The state of a packed linear inside another state: a pickle wraps it with its class's name."""
    state = item.state if isinstance(item, Instance) else None
    if isinstance(item, Instance) and item.cls.name == "ScriptObject" and isinstance(state, tuple) and state:
        return state[0]
    return state
