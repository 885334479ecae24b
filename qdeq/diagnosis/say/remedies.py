"""Remedies are worded for two models; these are the same lines for state dicts and files."""

from __future__ import annotations

import re

__all__ = ["in_terms_of"]

_OF_FLOAT = re.compile(r"float_model\.get_submodule\('([^']*)'\)\.(weight\.data|bias) = ")
_OF_INT8 = re.compile(
    r"(?:qdeq\.dequantize\()?int8_model\.get_submodule\('([^']*)'\)\.(weight|bias)\(\)(?:\.detach\(\)\.clone\(\)|\))"
)


def in_terms_of(remedy: str, *, int8_state: bool, float_state: bool) -> str:
    """A remedy in the names ``int8_state`` and ``float_state`` for the sides that are no modules.

    Args:
        remedy: line of code about ``int8_model`` and ``float_model``.
        int8_state: the int8 side is a state_dict, or what ``qdeq.open`` gives.
        float_state: the float side is one.

    """
    if int8_state:
        remedy = _OF_INT8.sub(lambda found: f"qdeq.dequantize_state_dict(int8_state)[0]['{_key(found)}']", remedy)
        remedy = remedy.replace(
            "float_model = qdeq.dequantize_model(int8_model)",
            "float_state, report = qdeq.dequantize_state_dict(int8_state)",
        )
    if float_state:
        remedy = _OF_FLOAT.sub(lambda found: f"float_state['{_key(found)}'] = ", remedy)
    return remedy


def _key(found: re.Match[str]) -> str:
    path, name = found.group(1), found.group(2).removesuffix(".data")
    return f"{path}.{name}" if path else name
