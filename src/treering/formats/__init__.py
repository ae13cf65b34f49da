"""What other programs write, as records: one module a format, values in and records out.

PURE: no files, no store, no network. Importers and exporters are entry points (`treering.importers`, `treering.exporters`), so
others can add theirs.
"""

from treering.formats.base import Found, Importer, Outcome, Passed, TextIds, Unfit, hashed_id

__all__ = ["Found", "Importer", "Outcome", "Passed", "TextIds", "Unfit", "hashed_id"]
