"""The calls that a checkpoint may hold, and what becomes of them: none is made."""

from __future__ import annotations

import sys
from typing import Any

from qdeq.files.torch_archive.limits import REMEDY_BROKEN
from qdeq.files.torch_archive.pickled import Call, Global, Instance
from qdeq.files.untrusted import refuse, shown

__all__ = ["PYTHON2", "build", "check_call"]

_REMEDY_CALL = "Nothing was run. If you trust the file, save its state_dict() alone and read that."

# Functions that a checkpoint may call. Their calls are kept as Call unless a builder below turns them into a container.
_ALLOWED_CALLS = frozenset(
    {
        "collections.OrderedDict", "collections.defaultdict", "collections.deque", "collections.Counter",
        "builtins.set", "builtins.frozenset", "builtins.list", "builtins.dict", "builtins.tuple", "builtins.bytearray",
        "builtins.bytes", "builtins.complex", "builtins.slice", "builtins.range", "builtins.int", "builtins.float",
        "builtins.str", "builtins.bool", "builtins.object", "builtins.getattr", "_codecs.encode",
        "copyreg._reconstructor", "functools.partial", "datetime.datetime", "datetime.date", "datetime.timedelta",
        "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.Path", "uuid.UUID",
        "operator.attrgetter", "operator.itemgetter", "decimal.Decimal", "fractions.Fraction", "re._compile",
        "types.SimpleNamespace", "argparse.Namespace", "enum.Enum", "inspect.Parameter", "inspect.Signature",
        "inspect._ParameterKind", "weakref.WeakSet", "copyreg.__newobj__",
        "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_qtensor", "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state", "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_wrapper_subclass",
        "torch.device", "torch.Size", "torch.Generator", "torch.serialization._get_layout", "torch.finfo",
        "torch.jit._pickle.build_intlist", "torch.jit._pickle.build_floatlist", "torch.jit._pickle.build_doublelist",
        "torch.jit._pickle.build_boollist", "torch.jit._pickle.build_tensorlist",
        "torch.jit._script.unpackage_script_module",
        "torch.jit._pickle.build_tensor_from_id", "torch.jit._pickle.restore_type_tag",
        "torch._C._autograd.DeviceType",
        "torch.fx.graph_module.reduce_graph_module", "torch.fx.graph_module.reduce_package_graph_module",
        "torch.fx.graph_module.reduce_deploy_graph_module",
        "torch.ao.quantization.observer._with_args", "torch.ao.quantization.qconfig.QConfig",
        "torch.quantization.qconfig.QConfig", "torch.ao.quantization.utils._PartialWrapper",
        "torch.ao.quantization.observer._PartialWrapper",
        "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray", "numpy.core.numeric._frombuffer",
        "numpy._core.numeric._frombuffer",
    }
)  # fmt: skip
_STRICT_ROOTS = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "__builtin__", "copy_reg", "pip", "setuptools"}
PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}


def check_call(where: str, func: object) -> Global:
    """Return ``func`` if a checkpoint may call it: it is on the list, or written like a class of somebody's own.

    Raises:
        QdeqValueError: it is neither, or no name.

    """
    if not isinstance(func, Global):
        refuse(where, "a named function to call", shown(func), REMEDY_BROKEN)
    if str(func) in _ALLOWED_CALLS:
        return func
    root, last = func.module.split(".", 1)[0], func.name.rsplit(".", 1)[-1]
    if root in _STRICT_ROOTS or not last.lstrip("_")[:1].isupper() or "." in func.name:
        refuse(where, "calls of known rebuild functions only", f"a call of {shown(str(func))}", _REMEDY_CALL)
    return func


def build(func: Global, args: tuple[Any, ...]) -> Any:
    """Turn a checked call into a container where that is all it is, else into a :class:`Call`."""
    name = str(func)
    if name in ("collections.OrderedDict", "builtins.dict", "collections.Counter") and not args:
        return {}
    if name == "collections.defaultdict":
        return {}
    if (
        name in ("builtins.set", "builtins.frozenset", "torch.Size", "builtins.list", "builtins.tuple")
        and len(args) == 1
    ):
        return args[0] if isinstance(args[0], list | tuple) else Call(func, args)  # shared: a copy could be a bomb
    if name.startswith("torch.jit._pickle.build_") and name.endswith("list") and len(args) == 1:
        return args[0] if isinstance(args[0], list) else Call(func, args)
    if name == "torch.jit._pickle.restore_type_tag" and args:
        return args[0]
    if name == "copyreg._reconstructor" and args and isinstance(args[0], Global):
        return Instance(args[0])
    return Call(func, args)
