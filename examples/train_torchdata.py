"""A loop written for torchdata's StatefulDataLoader, on a mix; started again it goes on at the exact batch. STORE OUT"""

import json
import sys
from pathlib import Path

from torchdata.stateful_dataloader import StatefulDataLoader

import treering
from treering.plugins.torchdata import TreeringDataLoader


def train(batches: StatefulDataLoader, state: Path) -> None:
    """Somebody else's loop: it knows StatefulDataLoader and nothing of treering."""
    if state.exists():
        batches.load_state_dict(json.loads(state.read_text()))
    for batch in batches:
        print(f"{len(batch['text'])} texts")
        state.write_text(json.dumps(batches.state_dict()))


mix = treering.open(sys.argv[1]).mix("support@v1", "support@live", weights=[0.5, 0.5], seed=7)
train(TreeringDataLoader(mix.loader(batch_size=8, columns=["id", "text", "label"])), Path(sys.argv[2]) / "loader.json")
