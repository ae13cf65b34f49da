"""Imported by Python itself in the processes under test: notes each batch that a loader hands out, and kills at one.

WATCH: folder for `rank<n>.txt`, a line a batch: its number, and the ids. WATCH_KILL: the process of rank 0 dies at this number;
WATCH_KILL_ONCE: but only once, which a file of this name tells.
"""

import atexit
import importlib.util
import os
import signal
import sys
import time
from typing import Any


def _let_gloo_go() -> None:
    """Leave a rank's gloo threads time to drop their last work, which holds Python objects; nobody can wait for that.

    One that drops it when Python is about to end aborts the process (`terminate called without an active exception`), after all
    was done; of two ranks of torch alone one in seven did on a busy machine. See pytorch/pytorch#179291.
    """
    if "torch.distributed" in sys.modules and {"RANK", "LOCAL_RANK"} & os.environ.keys():
        time.sleep(0.3)


atexit.register(_let_gloo_go)


class _Finder:
    """Puts the watch in as the loader's module is imported, so that processes without it pay nothing."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "treering.mixing.loader" or "WATCH" not in os.environ:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def then_watch(module: Any) -> None:
            execute(module)
            watch(module)

        spec.loader.exec_module = then_watch
        return spec


def watch(module: Any) -> None:
    make, following = module._Recipe.make, module._Iteration.__next__

    def with_ids(self: Any, reader: Any, batch: int) -> Any:
        ids: list[str] = []
        transform = self.transform

        def noted(made: dict[str, Any]) -> Any:
            ids.extend(made["id"])
            return made if transform is None else transform(made)

        self.transform = noted
        try:
            made, *rest = make(self, reader, batch)
        finally:
            self.transform = transform
        return (ids, made), *rest

    def handed(self: Any) -> Any:
        loader = self._loader
        number = loader._handed
        ids, batch = following(self)
        kill = os.environ.get("WATCH_KILL")
        once = os.environ.get("WATCH_KILL_ONCE")
        if kill is not None and int(kill) == number and loader.rank == 0 and not (once and os.path.exists(once)):
            if once:
                open(once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        with open(os.path.join(os.environ["WATCH"], f"rank{loader.rank}.txt"), "a") as log:
            log.write(f"{number} {','.join(ids)}\n")
        return batch

    module._Recipe.make, module._Iteration.__next__ = with_ids, handed


sys.meta_path.insert(0, _Finder())
