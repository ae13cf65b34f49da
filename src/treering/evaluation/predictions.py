"""PURE but for reading a file. What a model that was trained elsewhere said of held-out records, by their ids.

Kept under 128-bit hashes of the ids, so that a store that has erased a record holds no trace of its name here. Does not
know adapters (registry) or which slices are asked for (rounds).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from treering.errors import InvalidRecordError, NotFoundError, Problem, UsageError

from .tables import read_rows, refuse

if TYPE_CHECKING:
    from .slices import HeldoutSlice

__all__ = ["ForetoldSlice", "Predictions", "PredictionsModel", "read_predictions"]

_NAMED = 5  # ids that an error spells out

Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class PredictionsModel(BaseModel):
    """`adapters/<corpus>/<number>/predictions/<digest>.json`: one file of predictions, immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["treering.predictions/1"] = "treering.predictions/1"
    adapter: str
    predicted: dict[str, str] = Field(description="BLAKE2b hash of the record's id, 32 hex digits → label")
    probability: dict[str, Probability] | None = Field(
        default=None, description="that the model gave to the label it predicted; null when it didn't say"
    )


class Predictions:
    """Labels by record, for any slices whose records they cover."""

    def __init__(self, adapter: str, files: Sequence[PredictionsModel]) -> None:
        self.adapter = adapter
        self.predicted: dict[str, str] = {}
        self.probability: dict[str, float] = {}
        for file in files:
            self.predicted.update(file.predicted)
            self.probability.update(file.probability or {})

    def of(self, piece: HeldoutSlice) -> ForetoldSlice:
        """What was said of this slice's records, as a model of them. Raises NotFoundError that names what is missing."""
        hashes = [hash_id(name) for name in piece.ids]
        missing = [name for name, key in zip(piece.ids, hashes, strict=True) if key not in self.predicted]
        if not piece.ids or missing:
            what = f"lack {len(missing)} of the {piece.rows} records of {piece.name}: {named(missing)}"
            raise NotFoundError(
                f"{self.adapter} was trained elsewhere, and its predictions "
                + (what if piece.ids else f"can't be told for {piece.name}, whose records have no ids"),
                code="no-predictions",
                hint=f"treering eval {self.adapter} --predictions FILE",
            )
        return ForetoldSlice(self, piece, hashes)

    def conflicts(self, later: PredictionsModel) -> int:
        """Of how many records these said something else."""
        return sum(self.predicted.get(key, label) != label for key, label in later.predicted.items())


class ForetoldSlice:
    """A model of one slice that answers what was foretold."""

    def __init__(self, predictions: Predictions, piece: HeldoutSlice, hashes: Sequence[str]) -> None:
        self._predicted = [predictions.predicted[key] for key in hashes]
        self._probability = [predictions.probability.get(key) for key in hashes]
        self._adapter = predictions.adapter
        self.classes = tuple(sorted({*piece.labels, *predictions.predicted.values()}))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """One label per text of the slice, in its order."""
        if len(texts) != len(self._predicted):
            raise UsageError(f"{self._adapter} was trained elsewhere: it answers held-out records alone",
                             code="external-adapter")  # fmt: skip
        return list(self._predicted)

    def probabilities(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """(n, classes): what was said of the predicted label; the rest is spread evenly over the others.

        Raises UsageError when nothing was said.
        """
        labels = self.predict(texts)
        if None in self._probability:
            raise UsageError(
                f"{self._adapter} was trained elsewhere, and its predictions hold no probabilities",
                code="no-probabilities",
                hint="add a column `probability` to the file, or evaluate by accuracy or macro_f1",
            )
        given = np.array(self._probability, np.float64)
        number = {label: n for n, label in enumerate(self.classes)}
        spread = np.repeat(((1.0 - given) / max(1, len(self.classes) - 1))[:, None], len(self.classes), axis=1)
        spread[np.arange(len(labels)), [number[label] for label in labels]] = given
        return spread


def read_predictions(
    source: str, adapter: str, wanted: Mapping[str, Sequence[str]], also: Collection[str] = ()
) -> PredictionsModel:
    """The predictions in a JSONL, CSV or Parquet file: id, predicted and perhaps probability, a row per record.

    wanted: by slice, the ids of the records that must be predicted; `also`: ids that may be. Raises InvalidRecordError
    that names every id that is missing, doubled or unknown; NotFoundError and StoreError when the file can't be read.
    """
    rows = read_rows(source, {"id": str, "predicted": str}, {"probability": float})
    if not rows:
        raise UsageError(f"{source} holds no predictions", code="empty-slice", hint="a row needs id and predicted")
    counts = Counter(row["id"] for _, row in rows)
    known = {name for ids in wanted.values() for name in ids}
    problems: list[str] = []
    for slice_name, ids in wanted.items():
        missing = [name for name in ids if name not in counts]
        if missing:
            problems.append(f"{len(missing)} of the {len(ids)} records of {slice_name} are missing: {named(missing)}")
    doubled = [name for name, n in counts.items() if n > 1]
    if doubled:
        problems.append(f"{len(doubled)} ids come more than once: {named(doubled)}")
    unknown = [name for name in counts if name not in known and name not in also]
    if unknown:
        problems.append(f"{len(unknown)} ids are no held-out records of {', '.join(wanted)}: {named(unknown)}")
    if problems:
        raise InvalidRecordError(
            f"{source}: {'; '.join(problems)}", [], hint="nothing was stored; name what the file covers by --on REF"
        )
    bad = [
        Problem((number, "probability"), "bad-value", f"expected a share from 0 to 1, got {row['probability']:g}")
        for number, row in rows
        if row["probability"] is not None and not 0.0 <= row["probability"] <= 1.0
    ]
    if bad:
        raise refuse(source, bad)
    told: dict[str, Any] = {hash_id(r["id"]): r["probability"] for _, r in rows if r["probability"] is not None}
    return PredictionsModel(
        adapter=adapter,
        predicted={hash_id(row["id"]): row["predicted"] for _, row in rows},
        probability=told or None,
    )


def hash_id(name: str) -> str:
    """What a record's id is kept as: 32 hex digits."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def named(names: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join(map(repr, names[:_NAMED])) + (", …" if len(names) > _NAMED else "")
