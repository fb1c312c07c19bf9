"""How far the work is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (images done, images in all): probes, and all images for a method that looks at them first."""
