"""The whole story on real data: capture a live stream, seal it round by round, train with and without the past, decide.

`run_demo` is what `treering demo` calls. Uses the public API alone, as a user would.
"""

from __future__ import annotations

from treering.demo.story import DemoArm, DemoResult, run_demo

__all__ = ["DemoArm", "DemoResult", "run_demo"]
