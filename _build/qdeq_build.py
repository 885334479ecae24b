"""PEP 517 backend: setuptools, building against the torch that the package will run with.

pip builds in an isolated environment. Asking there for ``torch`` would download a second copy, often of
another version than the one installed. Inside pip's build process ``sysconfig`` still names the target's
site-packages: if a new enough torch lies there, it is put on ``sys.path`` for the build; otherwise the newest
torch is asked for, which is also what the installed package will pull in.
"""

from __future__ import annotations

import sys
import sysconfig
from importlib.metadata import distributions
from typing import Any

from packaging.version import Version
from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no torch)

MIN_TORCH = "2.13"
TORCH_REQUIREMENT = f"torch>={MIN_TORCH}"


def _target_site_packages() -> list[str]:
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _target_has_torch() -> bool:
    found = distributions(name="torch", path=_target_site_packages())
    return any(Version(dist.version) >= Version(MIN_TORCH) for dist in found)


def _requires(from_setuptools: list[str]) -> list[str]:
    return from_setuptools if _target_has_torch() else [*from_setuptools, TORCH_REQUIREMENT]


def _expose_target_torch() -> None:
    if _target_has_torch():
        sys.path.extend(path for path in _target_site_packages() if path not in sys.path)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return _requires(_setuptools.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return _requires(_setuptools.get_requires_for_build_editable(config_settings))


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    _expose_target_torch()
    return _setuptools.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    _expose_target_torch()
    return _setuptools.build_editable(wheel_directory, config_settings, metadata_directory)
