"""For tests of what is built on treering: sources in memory, and contracts as functions."""

from treering.testing.contracts import ResumableLoader, check_resume
from treering.testing.memory import MemorySegment, MemorySource, MemoryStore

__all__ = ["MemorySegment", "MemorySource", "MemoryStore", "ResumableLoader", "check_resume"]
