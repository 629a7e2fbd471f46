"""Measuring models, and showing what was measured. Import the submodules."""

from __future__ import annotations

__all__: list[str] = []
