"""A round over one store: train, evaluate, gate. Each function composes the layers to the left; none holds state.

Functions are bound here when the package is imported, so that `rounds.evaluate` is the function and not the module.
"""

from __future__ import annotations

from treering.rounds.evaluate import Evaluation, Model, evaluate, gate, load_adapter, score_matrix
from treering.rounds.train import Run, train

__all__ = ["Evaluation", "Model", "Run", "evaluate", "gate", "load_adapter", "score_matrix", "train"]
