"""Formats out: records as the bytes of other programs' files.

PURE: Arrow batches in, bytes out. Which rows, and where the bytes go, is `treering.mixing.export`'s.
"""

from treering.formats.writers.base import Exporter, WrittenFile, exporter_names, find_exporter
from treering.formats.writers.json_lines import JsonLines, Raw

__all__ = ["Exporter", "JsonLines", "Raw", "WrittenFile", "exporter_names", "find_exporter"]
