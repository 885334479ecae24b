"""From a read pickle to the tensors it describes, by dotted name: state dicts, checkpoints, whole models, scripts.

Sources: ``torch.nn.Module.__reduce__`` (the instance dict), ``torch/ao/nn/quantized/modules/conv.py``
(``__getstate__``), ``torch/fx/graph_module.py`` (``reduce_graph_module``); packed parameters:
:mod:`qdeq.weights.packed_state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdeq.files.torch_archive.contents import Contents, Level
from qdeq.files.torch_archive.limits import MAX_DEPTH, MAX_NAME, MAX_NODES, MAX_SHARES
from qdeq.files.torch_archive.packed_objects import (
    conv_module_geometry,
    linear_pair,
    packed_object,
)
from qdeq.files.torch_archive.pickled import Call, Global, Instance, Persistent
from qdeq.files.torch_archive.storages import StorageReader
from qdeq.files.torch_archive.tensors import StoredTensor, tensor_from
from qdeq.files.untrusted import refuse, shown
from qdeq.state_dicts.naming import CONSTANTS
from qdeq.state_dicts.parts import Packed
from qdeq.state_dicts.rnn import RnnShape
from qdeq.words import join

__all__ = ["collect"]

_PYTHON_STATE = ("_parameters", "_buffers", "_modules")
_CONV_WEIGHT, _CONV_BIAS, _CONV_SCALE, _CONV_ZERO_POINT = 10, 11, 12, 13  # places in quantized convs' state tuple
_CONTAINERS = (dict, list, tuple, Instance)  # tuples: a union is built anew at every use, which is slow
_PLAIN = (str, int, float, bytes, Global)
# What torch.package calls to load a script that lies in the archive by itself; and what torch 1.3 to 1.7 call the
# module with the packed weight of a linear, whose state in their scripts is (weight, bias, training[, dtype]).
_PACKAGED_SCRIPT = Global("torch.jit._script", "unpackage_script_module")
_LINEAR_HOLDER = "LinearPackedParams"


def collect(
    path: str,
    top: object,
    reader: StorageReader,
    prefix: str,
    into: Contents,
    scripts: Mapping[Any, dict[str, Any]] | None = None,
) -> None:
    """Flatten what a pickle describes.

    Args:
        path: the file, for errors.
        top: the description that :func:`~qdeq.files.torch_archive.unpickler.read_pickle` returned.
        reader: gives the storages.
        prefix: goes before every key.
        into: contents to add to.
        scripts: scripts that the pickle refers to: number -> what is in each, by the prefix it gets.

    Raises:
        QdeqValueError: too deep, too large, or a tensor that does not fit the file.

    """
    _Walk(path, reader, into, scripts or {}).visit(prefix, top, 0)


class _Walk:
    def __init__(self, path: str, reader: StorageReader, contents: Contents, scripts: Mapping[Any, Any]) -> None:
        self.path, self.reader, self.contents, self.scripts = path, reader, contents, scripts
        self.nodes = 0
        self.tensors: dict[int, StoredTensor] = {}
        self.open: set[int] = set()
        self.visits: dict[int, int] = {}

    def where(self, key: str) -> str:
        return f"{self.path}: {shown(key)[1:-1]}" if key else self.path

    def join(self, key: str, name: str) -> str:
        """``join`` for names out of a file: one that is used in many places may not be as long as it likes."""
        if len(key) + len(name) > MAX_NAME:
            remedy = "Save the state_dict() alone."
            refuse(self.where(key), f"names of at most {MAX_NAME} characters", shown(name), remedy)
        return join(key, name)

    def put(self, key: str, value: Any) -> None:
        if isinstance(value, int) and abs(value) >= 2**63:
            refuse(self.where(key), "a number of at most 63 bits", shown(value))
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
            if isinstance(name, str) or (isinstance(name, int) and abs(name) < 2**63):
                level.begin()
                self._child(key, str(name), item, depth)
                if item is not None:
                    level.end(str(name), _is_nested(item))
            elif isinstance(item, _CONTAINERS):
                self.contents.dropped[self.join(key, "(a key that is no text)")] = "no name to call it by"
        level.leave_records()

    def _child(self, key: str, name: str, item: Any, depth: int) -> None:
        if isinstance(item, _PLAIN) and not isinstance(item, bool):
            if not self._is_qparam(name, item):
                return
            self.put(self.join(key, name), item)
            return
        self.visit(self.join(key, name), item, depth + 1)

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
        elif value.cls == _PACKAGED_SCRIPT and value.args and isinstance(value.args[0], str):
            for name, part in self.scripts.get(value.args[0], {}).items():
                self.visit(self.join(key, name) if name else key, part, depth + 1)
        elif value.cls.name == _LINEAR_HOLDER and isinstance(state, tuple) and len(state) >= 2:
            self.put(self.join(key, "_packed_params"), self._pair(key, state[:2]))
        elif self._is_conv(key, state):
            self._conv(key, state)
        elif isinstance(state, dict):
            if not self.contents.drop_optimizer(key, state):
                self._module(key, value, state, depth)
        elif isinstance(state, tuple | list):
            self.visit(self.join(key, "state"), state, depth + 1)
        elif value.items:
            self.visit(key, value.items, depth + 1)
        elif value.elements:
            self.visit(key, value.elements, depth + 1)
        else:
            for at, item in enumerate(value.args):
                if isinstance(item, _CONTAINERS):
                    self.visit(self.join(key, str(at)), item, depth + 1)

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
            full = self.join(key, name)
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

    def _is_conv(self, key: str, state: object) -> bool:
        """Whether a state is the tuple that torch's quantized convolutions, and classes made from them, pickle."""
        if not isinstance(state, tuple) or len(state) <= _CONV_ZERO_POINT:
            return False
        numbers = state[_CONV_SCALE], state[_CONV_ZERO_POINT]
        if not all(isinstance(number, int | float) for number in numbers):
            return False
        return self.tensor(self.join(key, "weight"), state[_CONV_WEIGHT]) is not None

    def _conv(self, key: str, state: tuple[Any, ...]) -> None:
        weight, bias = self.join(key, "weight"), self.join(key, "bias")
        self.put(weight, self._need(weight, state[_CONV_WEIGHT]))
        self.put(bias, self.tensor(bias, state[_CONV_BIAS]))
        self.put(self.join(key, "scale"), state[_CONV_SCALE])
        self.put(self.join(key, "zero_point"), state[_CONV_ZERO_POINT])
        geometry = conv_module_geometry(state)
        if geometry is not None:
            self.contents.geometries[weight] = geometry

    def _pair(self, key: str, state: object) -> Packed:
        return linear_pair(self.where(key), state, lambda value: self._need(key, value))

    def _need(self, key: str, value: object) -> StoredTensor:
        tensor = self.tensor(key, value)
        if tensor is None:
            refuse(self.where(key), "a weight", shown(type(value).__name__))
        return tensor

    def _script_object(self, key: str, class_name: object, state: Any) -> None:
        if not isinstance(class_name, str):
            refuse(self.where(key), "the name of a class", shown(class_name))
        packed, geometry = packed_object(self.where(key), class_name, state, lambda value: self._need(key, value))
        if packed is None:
            what = f"packed parameters of {shown(class_name)}, a class that qdeq does not read"
            self.contents.leave_unread(key, what)
            return
        self.put(key, packed)
        if geometry is not None:
            self.contents.geometries[key] = geometry


def _is_nested(item: object) -> bool:
    """Whether an entry is a mapping or an object of its own, such as a model."""
    return isinstance(item, dict) or (isinstance(item, Instance) and (isinstance(item.state, dict) or bool(item.items)))
