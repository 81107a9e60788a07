"""The user's `Config` that `aioraft bench --config` names."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

import aioraft

from ._command import CommandError, Status

__all__ = ["load_config"]


def load_config(name: str | None) -> aioraft.Config:
    """Import `MODULE:NAME`, from where the command was called too; the default Config without one."""
    if name is None:
        return aioraft.Config()
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        # Standard output is for the report, and between the processes for their words.
        with contextlib.redirect_stdout(sys.stderr):
            config = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's raises
        raise CommandError(
            f"--config {name} cannot be imported ({type(error).__name__}: {error}): it takes MODULE:NAME, such as "
            "app.settings:CONFIG, of a module that can be imported from here",
            Status.USAGE,
        ) from error
    if not isinstance(config, aioraft.Config):
        raise CommandError(f"--config {name} is no aioraft.Config but a {type(config).__name__}", Status.USAGE)
    return config
