"""Take each guard out, one at a time, and see a test turn red.

    python scripts/mutate.py [WORD …] [--jobs N] [--list]

Words choose mutations by name. Works on copies of the tree; exits 1 when a guard can go without any test noticing, or isn't
where this list says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """A guard, how to take it out, and the tests that must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    # --- durability
    Mutation(
        "the spool syncs what it acknowledges",
        "capture/spool.py",
        "synchronous={'FULL' if",
        "synchronous={'OFF' if",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "a large batch's file is synced before a row names it",
        "capture/spool.py",
        "                os.fdatasync(descriptor)\n",
        "",
        "tests/capture/test_durability.py -k large",
    ),
    Mutation(
        "a large batch's file is named on disk before a row names it",
        "capture/spool.py",
        "            sync_directory(path.parent)\n        except",
        "        except",
        "tests/capture/test_durability.py -k large",
    ),
    Mutation(
        "files that no row names go with their spool",
        "capture/spool.py",
        "                        path.unlink(missing_ok=True)\n",
        "                        pass\n",
        "tests/capture/test_durability.py -k large",
    ),
    Mutation(
        "a commit is durable before the spool lets go",
        "capture/commit.py",
        "    corpus.table.make_durable(corpus.table.head())\n",
        "",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "a neighbour's files are synced too",
        "store/table.py",
        "pending = (transactions | set(self.files(dataset))) - self._synced",
        "pending = transactions - self._synced",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "a version is durable before its snapshot's record says so",
        "store/snapshot.py",
        "        corpus.table.make_durable(head)\n",
        "",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "a tag is synced",
        "store/table.py",
        '            sync_file(tags / f"{name}.json")\n',
        "",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "an object's bytes are synced before it gets its name",
        "store/objects.py",
        "        os.fsync(descriptor)\n",
        "",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "what waits in the spool of a dead process is adopted",
        "capture/recorder.py",
        "        try:\n            drain(corpus, spool, done)\n",
        "        try:\n            pass\n",
        "tests/capture/test_recorder.py",
    ),
    Mutation(
        "what a kill kept from its name goes with a cleanup",
        "store/table.py",
        "return int(stats.bytes_removed) + self._clear_unnamed()",
        "return int(stats.bytes_removed)",
        "tests/store/test_rot.py -k name",
    ),
    Mutation(
        "what is getting its name is left alone",
        "store/table.py",
        "                    if now - found.st_mtime > _UNNAMED_S:\n",
        "                    if True:\n",
        "tests/store/test_rot.py -k name",
    ),
    # --- once
    Mutation(
        "a merge of the same ids conflicts",
        "store/table.py",
        "merge = merge.use_index(False)",
        "merge = merge.use_index(True)",
        "tests/store/test_table.py",
    ),
    Mutation(
        "repeats within a batch are dropped",
        "capture/commit.py",
        "    rows, again, originals = _first_of_each_id(rows)\n",
        "    again = originals = rows.slice(0, 0)\n",
        "tests/capture/test_recorder.py tests/stateful",
    ),
    Mutation(
        "a commit asks the snapshots for its ids",
        "capture/commit.py",
        '        known, gone = _sealed_with(corpus, history, rows.column("id").to_pylist(), records)\n',
        "        known, gone = {}, set()\n",
        "tests/capture/test_recorder.py",
    ),
    Mutation(
        "other content under a known id goes to quarantine",
        "capture/commit.py",
        '            if same_content(row, first[row["id"]], history):',
        "            if True:",
        "tests/capture/test_recorder.py",
    ),
    # --- snapshots
    Mutation(
        "a name is sealed once",
        "store/snapshot.py",
        '        except AlreadyExistsError:\n            return NAME_TAKEN\n        corpus.step("after-record")',
        '        except AlreadyExistsError:\n            pass\n        corpus.step("after-record")',
        "tests/store/test_snapshots.py",
    ),
    Mutation(
        "a version that holds sealed rows is never sealed again",
        "store/snapshot.py",
        "            return NAME_TAKEN  # finishing was undone",
        "            pass  # finishing was undone",
        "tests/store/test_snapshots.py",
    ),
    Mutation(
        "a moved tag is noticed",
        "store/snapshot.py",
        "    if before is None or tagged != (before.branch, before.version):",
        "    if False:",
        "tests/store/test_snapshots.py",
    ),
    Mutation(
        "rows that are gone are an error",
        "store/source.py",
        "        if len(found) != len(row_ids):\n            self.check_whole()\n",
        "        if False:\n            self.check_whole()\n",
        "tests/store/test_snapshots.py",
    ),
    # --- erasure
    Mutation(
        "a commit looks at what was erased",
        "capture/commit.py",
        'hit = pa.array(denied.denies(rows.column("id"), rows.column("subject")))',
        "hit = pa.array([False] * len(rows))",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "a commit looks again after it",
        "capture/commit.py",
        "    erase_again(corpus, ids)\n",
        "",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "an erasure that was cut short is completed",
        "store/snapshot.py",
        "    finish_erasures(corpus)\n",
        "",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "an erased snapshot needs no file of the main branch",
        "store/table.py",
        """ or any(file.get("base_id") is not None for file in fragment["files"])""",
        "",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "the index forgets erased ids",
        "store/erase.py",
        "        table.reindex(branch)\n",
        "",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "a snapshot's index names no other's ids",
        "store/table.py",
        "return any(not held.issuperset(map(int, segment.fragment_ids)) for segment in segments)",
        "return False",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "what killed writers left goes",
        "store/table.py",
        "delete_unverified=unnamed",
        "delete_unverified=False",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "what was certified of the former content goes",
        "store/erase.py",
        "            forget_object(corpus, before.path(suffix))\n",
        "            pass\n",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "trimmed bytes leave the spool",
        "capture/spool.py",
        '    connection.execute("VACUUM")\n',
        "",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "a refused record names somebody wherever it does",
        "store/denylist.py",
        "            yield from _texts(item, whole=False, depth=depth + 1)\n    elif isinstance(value, list | tuple):",
        "            pass\n    elif isinstance(value, list | tuple):",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "live begins after the boundary on the main branch",
        "store/documents.py",
        "return self.version if self.main_version is None else self.main_version",
        "return self.version",
        "tests/store/test_erase.py",
    ),
    Mutation(
        "a lock of the former content refuses",
        "store/source.py",
        '    if erased == "refuse":\n',
        "    if False:\n",
        "tests/mixing/test_erased.py",
    ),
    Mutation(
        "erased rows are left out of batches",
        "mixing/loader.py",
        "        if gone is not None and gone.any():\n",
        "        if False:\n",
        "tests/mixing/test_erased.py",
    ),
    Mutation(
        "files go only while no writer is inside",
        "store/turnstile.py",
        "            for descriptor in (door, inside):\n",
        "            for descriptor in (door,):\n",
        "tests/store/test_turnstile.py",
    ),
    # --- engines
    Mutation(
        "an import by an engine is cut by what it holds",
        "capture/importer.py",
        "    paced = engine is not None and all(",
        "    paced = False and all(",
        "tests/engine/test_ray.py -k cut_alike",
    ),
    Mutation(
        "a call whose worker died is made again",
        "engine/ray.py",
        "_AGAIN = 2\n",
        "_AGAIN = 0\n",
        "tests/engine/test_ray.py -k dies",
    ),
    Mutation(
        "a path of one machine is refused on several",
        "engine/ray.py",
        "        if nodes > 1:\n",
        "        if False:\n",
        "tests/engine/test_ray.py -k one_machine",
    ),
    Mutation(
        "a Ray head is asked for a word before Ray tries",
        "engine/ray.py",
        '                    if address != "local":\n',
        "                    if False:\n",
        "tests/engine/test_ray.py -k cluster_that_is_not_there",
    ),
    Mutation(
        "a cluster that is gone isn't awaited",
        "engine/ray.py",
        "            if time.monotonic() - gone_since >= _GONE_S:\n",
        "            if False:\n",
        "tests/engine/test_ray.py -k cluster_that_goes",
    ),
    Mutation(
        "handlers of signals are put back when Ray has begun",
        "engine/ray.py",
        "        for one, handler in before.items():\n",
        "        for one, handler in ():\n",
        "tests/engine/test_ray.py -k cluster_that_goes",
    ),
    Mutation(
        "the exit code of a signal's handler is kept",
        "engine/ray.py",
        "        if asked is None:\n",
        "        if True:\n",
        "tests/engine/test_ray.py -k cluster_that_goes",
    ),
    Mutation(
        "workers look a lock's sources up for each export",
        "mixing/export.py",
        '"call": uuid4().hex',
        '"call": ""',
        "tests/engine/test_local.py -k erased_between",
    ),
    Mutation(
        "workers have the caller's version",
        "engine/ray.py",
        "    if version != treering.__version__:\n",
        "    if False:\n",
        "tests/engine/test_ray.py -k another",
    ),
    Mutation(
        "what no worker can read is refused",
        "capture/importer.py",
        "        elif self._must and _is_there(self._source):\n",
        "        elif False:\n",
        "tests/engine/test_ray.py -k no_worker",
    ),
    Mutation(
        "a column that is of another length is noticed",
        "store/certificate.py",
        "    if len(lengths) != 1:\n",
        "    if False:\n",
        "tests/engine/test_ray.py -k length",
    ),
    Mutation(
        "a domain's share of the replay is spread over its labels",
        "store/selection.py",
        "        over = None if self._spread is None else parts\n",
        "        over = None\n",
        "tests/store/test_selection.py -k spread",
    ),
    Mutation(
        "a paced recorder joins fragments after the same commits, whoever makes them",
        "capture/recorder.py",
        "if self._paced and waits:",
        "if False:",
        "tests/engine/test_ray.py -k cut_alike",
    ),
    Mutation(
        "who shares a file counts the copies that another makes the ids of",
        "capture/chunks.py",
        "            self._importer.pass_over(text)\n",
        "            pass\n",
        "tests/capture/test_shared_files.py",
    ),
    Mutation(
        "a file that is shared is the same for all who read it",
        "capture/importer.py",
        "chunk.begins != ends:",
        "False:",
        "tests/capture/test_shared_files.py -k changed",
    ),
    Mutation(
        "who share a file read as much of it",
        "capture/chunks.py",
        "                    stream = beginning(stream, self.share.size)\n",
        "                    pass\n",
        "tests/capture/test_shared_files.py -k written",
    ),
    Mutation(
        "only values that stand alone are shared",
        "capture/chunks.py",
        "self._importer is not None and self._importer.stands_alone",
        "self._importer is not None",
        "tests/capture/test_shared_files.py -k stand_alone",
    ),
    Mutation(
        "whether a file fits at all is settled before turns are taken",
        "capture/chunks.py",
        "                    is_settled = is_settled or self._found > 0\n",
        "                    is_settled = True\n",
        "tests/capture/test_shared_files.py -k settled",
    ),
    Mutation(
        "a call that an exporter sends again after it was stored is no new one",
        "server/held.py",
        "        return found is not None\n\n    def due(",
        "        return False\n\n    def due(",
        "tests/server/test_telemetry.py -k answer_is_lost",
    ),
    Mutation(
        "a request is taken as new only when nobody has used its ids",
        "server/writers.py",
        "        return found if is_new else None",
        "        return found",
        "tests/server/test_writers.py -k each_record",
    ),
    Mutation(
        "tables are stored as one only when their columns are the same",
        "server/writers.py",
        "    return batch.given.table.schema.remove_metadata()",
        "    return 1",
        "tests/server/test_writers.py -k tables",
    ),
    # --- the client's bound
    Mutation(
        "an agent waits for the disk no longer than is stated",
        "client/recorder.py",
        "pending.written.wait(max(0.0, deadline - time.monotonic()))",
        "pending.written.wait()",
        "tests/client/test_bound.py",
    ),
    Mutation(
        "the records of one extend share one wait",
        "client/recorder.py",
        'status = self._put(b"".join(lines), len(lines), deadline)',
        'status = self._put(b"".join(lines), len(lines), time.monotonic() + self._block_s)',
        "tests/client/test_bound.py -k never_answers_costs",
    ),
    Mutation(
        "an agent waits for no disk that is known to be full",
        "client/recorder.py",
        " or self._sender.spool_error is not None",
        "",
        "tests/client/test_bound.py -k full",
    ),
    Mutation(
        "nothing is logged while an agent may wait for the lock",
        "client/sender.py",
        '            tally.refused += said["refused"]\n',
        '            tally.refused += said["refused"]\n            logger.warning("%s", corpus)\n',
        "tests/client/test_bound.py -k agents_thread",
    ),
    # --- locks and limits
    Mutation(
        "one maintainer at a time",
        "store/lease.py",
        "        lock.acquire()\n    except Timeout as exc:",
        "        pass\n    except Timeout as exc:",
        "tests/store tests/capture",
    ),
    Mutation(
        "a lost lease is noticed",
        "store/lease.py",
        "        if time.monotonic() - self._renewed >= EXPIRES_S - _RENEW_S:",
        "        if False:",
        "tests/s3/test_promises.py",
    ),
    Mutation(
        "a server without conditional writes is refused",
        "store/objects.py",
        "        for _ in range(2):\n            try:\n                obstore.put(self._small, _PROBE",
        "        for _ in range(0):\n            try:\n                obstore.put(self._small, _PROBE",
        "tests/s3/test_promises.py",
    ),
    Mutation(
        "capture pauses while too much waits",
        "capture/recorder.py",
        "        while self._backlog[1] > MAX_BACKLOG_BYTES and",
        "        while False and",
        "tests/capture/test_recorder.py",
    ),
    Mutation(
        "a line has a longest length",
        "capture/sources.py",
        "line = stream.readline(_LONGEST).removeprefix(codecs.BOM_UTF8)",
        "line = stream.readline().removeprefix(codecs.BOM_UTF8)",
        "tests/conformance/test_json.py",
    ),
    Mutation(
        "an import goes on only in the file that it began with",
        "capture/chunks.py",
        "if self.values != before.values or self.digest != before.digest:",
        "if False:",
        "tests/capture/test_imports.py",
    ),
    Mutation(
        "a worker is never further ahead than it may be",
        "engine/worker.py",
        "                    may_go_on.acquire()\n",
        "",
        "tests/engine/test_local.py",
    ),
    Mutation(
        "a worker ends with its parent",
        "engine/worker.py",
        "            may_go_on.release()\n    os._exit(0)",
        "            may_go_on.release()",
        "tests/engine/test_local.py",
    ),
    Mutation(
        "Ctrl-C is the parent's business",
        "engine/local.py",
        ", process_group=0",
        "",
        "tests/engine/test_local.py",
    ),
    Mutation(
        "what only this process can read is read here",
        "capture/chunks.py",
        'if protocol == "memory" or ',
        "if ",
        "tests/capture/test_import_workers.py",
    ),
    Mutation(
        "only what is on disk counts as read",
        "capture/importer.py",
        "        kept = self.recorder.take(",
        "        for going, chunk in taken:\n            going.took(chunk)\n        kept = self.recorder.take(",
        "tests/capture/test_imports.py",
    ),
    Mutation(
        "zst that is cut short is an error",
        "capture/sources.py",
        "if self._frame is not None:",
        "if False:",
        "tests/capture/test_imports.py",
    ),
    Mutation(
        "annotations of a file that comes again are known",
        "capture/importer.py",
        'one.get("by")) not in known)',
        'one.get("by")) not in ())',
        "tests/capture/test_imports.py",
    ),
    Mutation(
        "a batch that is known in part counts each record once",
        "capture/commit.py",
        ", up_to=before)",
        ")",
        "tests/capture/test_recorder.py",
    ),
    Mutation(
        "a file under a new name isn't read twice",
        "capture/following.py",
        "None if self._is_renamed(path) else self._begin(path)",
        "self._begin(path)",
        "tests/capture/test_following.py",
    ),
    Mutation(
        "a key said twice is refused",
        "schema/strict_json.py",
        "catch_duplicate_keys=True",
        "catch_duplicate_keys=False",
        "tests/conformance/test_json.py",
    ),
    Mutation(
        "a number beyond a double is refused",
        "schema/strict_json.py",
        "    if (at >= 0 and _has_power(shape, at)) or _LONG in shape:\n",
        "    if False:\n",
        "tests/conformance/test_json.py",
    ),
    Mutation(
        "a history that was changed is read again",
        "formats/genai.py",
        "    if not given.startswith(stem) or given",
        "    if given",
        "tests/formats/test_otlp.py -k changed",
    ),
    Mutation(
        "attributes of messages that were changed are read again",
        "formats/genai.py",
        "and given[: before.count] == before.given",
        "and len(given) >= before.count",
        "tests/formats/test_openinference.py -k changed",
    ),
    Mutation(
        "lists of attributes share only what they both begin with",
        "formats/otlp.py",
        "    if came and given[: len(came)] == came:\n",
        "    if came and len(given) >= len(came):\n",
        "tests/formats/test_otlp.py -k changed",
    ),
    Mutation(
        "messages that calls share are not written to",
        "formats/collapse.py",
        'one = {**one, "reasoning_content": self.thoughts[step][2]}',
        'one["reasoning_content"] = self.thoughts[step][2]',
        "tests/formats/test_collapse.py -k share",
    ),
    Mutation(
        "what was longest without a call is held as text",
        "formats/collapse.py",
        "        while self._loose_size > LOOSE_BYTES:\n",
        "        while False:\n",
        "tests/formats/test_collapse.py -k text",
    ),
    Mutation(
        "names are checked before they become paths",
        "store/base.py",
        "        check_corpus_name(name)\n        record_type = RecordType.of(schema)",
        "        record_type = RecordType.of(schema)",
        "tests/conformance/test_names.py",
    ),
    Mutation(
        "old versions are tidied away",
        "capture/recorder.py",
        "                self.corpus.clean_up(keep_versions=RECENT_VERSIONS, wait_s=0.0)\n",
        "                pass\n",
        "tests/store/test_rot.py",
    ),
    Mutation(
        "a scan of live outlives its version",
        "store/source.py",
        "                if not left:\n                    raise\n",
        "                raise\n",
        "tests/store/test_rot.py",
    ),
    # --- integrity
    Mutation(
        "a table that was rolled back is an error",
        "store/table.py",
        "            self._check_head(dataset, seen)\n",
        "",
        "tests/store/test_witness.py",
    ),
    Mutation(
        "what was never synced is taken back after a restart",
        "store/table.py",
        "            seen = self._take_back(seen)\n",
        "            pass\n",
        "tests/store/test_witness.py",
    ),
    Mutation(
        "a missing snapshot record is an error",
        "store/snapshot.py",
        "    if not _none_missing(corpus, named, set(newest)):\n",
        "    if False:\n",
        "tests/store/test_witness.py",
    ),
    Mutation(
        "a record that is made while the others are listed isn't missing",
        "store/snapshot.py",
        'missing = [number for number in unlisted if not corpus.store.objects.exists(f"{folder}/v{number}/1.json")]',
        "missing = unlisted",
        "tests/store/test_snapshots.py -k being_listed",
    ),
    Mutation(
        "a head older than a snapshot is an error",
        "store/table.py",
        "        if dataset.version < self.floor:\n            self.head()",
        "        if False:\n            self.head()",
        "tests/s3/test_integrity.py",
    ),
    Mutation(
        "a lost version's number never comes back",
        "store/table.py",
        "                if dataset.version > version:\n",
        "                if True:\n",
        "tests/store/test_doctor.py",
    ),
    Mutation(
        "cleaning up keeps what is on disk",
        "store/table.py",
        ", self._kept(head):",
        ":",
        "tests/store/test_witness.py",
    ),
    Mutation(
        "a document's checksum is compared",
        "store/documents.py",
        "    if found is None or hashlib",
        "    if False and hashlib",
        "tests/store/test_verify.py",
    ),
    Mutation(
        "every file is compared with the certificate",
        "store/verify.py",
        "    wrong = [path for path, expected in certificate.files.items() if sums[path] != expected]\n",
        "    wrong = []\n",
        "tests/store/test_verify.py",
    ),
    Mutation(
        "a damaged file's records are named by their blocks",
        "store/verify.py",
        "    return digest.blocks() == [expected]\n",
        "    return True\n",
        "tests/store/test_verify.py",
    ),
    Mutation(
        "loading looks at a snapshot's files",
        "store/snapshot.py",
        "    corpus.table.check_present(sealed_in(corpus, record).dataset)\n",
        "",
        "tests/store/test_verify.py",
    ),
    Mutation(
        "a file whose sync failed is written anew",
        "store/durable.py",
        "        _FAILED.add(str(path))\n",
        "",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "the spool's folder is named on disk",
        "capture/spool.py",
        "            make_directory(directory, below=directory.parents[1])\n",
        "            directory.mkdir(parents=True, exist_ok=True)\n",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "a batch is synced in time",
        "capture/spool.py",
        "            due = time.monotonic() + log.sync_every_s\n",
        "            due = None\n",
        "tests/capture/test_durability.py",
    ),
    Mutation(
        "a store behind a link that leaves it is refused",
        "store/base.py",
        "            entry.is_symlink()\n            and entry.name",
        "            False\n            and entry.name",
        "tests/store/test_doctor.py",
    ),
    # --- what a mix may draw
    Mutation(
        "held-out rows aren't drawn",
        "store/certificate.py",
        '    ids = np.sort(ids[np.asarray(pc.fill_null(pc.equal(batch.column("split"), split), False))], kind="stable")',
        '    ids = np.sort(ids, kind="stable")',
        "tests/mixing/test_never_drawn.py",
    ),
    # --- prune
    Mutation(
        "a pruned id is known by its hash",
        "store/prune.py",
        "    return {record_id for record_id, same in zip(ids, known[at] == asked, strict=True) if same}",
        "    return set()",
        "tests/store/test_prune.py -k late_retry",
    ),
    Mutation(
        "only a pruned id is taken for one",
        "store/prune.py",
        "zip(ids, known[at] == asked, strict=True) if same}",
        "zip(ids, known[at] == asked, strict=True)}",
        "tests/store/test_prune.py -k false_positive",
    ),
    Mutation(
        "hashes of pruned ids are compared with their digest",
        "store/prune.py",
        "if hashlib.sha256(data).hexdigest() != pruned.ids_sha256:",
        "if False:",
        "tests/store/test_prune.py -k changed_are_refused",
    ),
    Mutation(
        "the tag of a pruned snapshot goes",
        "store/prune.py",
        "            corpus.table.untag(record.name)\n",
        "            pass\n",
        "tests/store/test_prune.py -k says_when",
    ),
    Mutation(
        "a lost lease stops a prune",
        "store/prune.py",
        "                held.check()\n",
        "",
        "tests/store/test_prune.py -k lease",
    ),
    Mutation(
        "what production needs is blocked",
        "registry/prune.py",
        "    if blocked and not dry_run and not force:",
        "    if False:",
        "tests/store/test_prune.py -k production",
    ),
    Mutation(
        "what production continues from is needed too",
        "registry/needs.py",
        '            found.update((one.ref, one) for one in ancestry(store, f"{corpus}:{number}"))',
        '            found.update((one.ref, one) for one in ancestry(store, f"{corpus}:{number}")[:1])',
        "tests/store/test_prune.py -k production",
    ),
    Mutation(
        "ages come from the store's clock",
        "store/prune.py",
        "    return now - max(written.astimezone(UTC), record.created_at.astimezone(UTC))",
        "    return now - record.created_at.astimezone(UTC)",
        "tests/store/test_prune.py -k clock",
    ),
    Mutation(
        "kept held-out records are compared with their digest",
        "store/heldout.py",
        "        if hashlib.sha256(data).hexdigest() != part.sha256:",
        "        if False:",
        "tests/store/test_prune.py -k kept_records_that_were_changed",
    ),
    Mutation(
        "only held-out records are read of a pruned snapshot",
        "store/heldout.py",
        '        if split != "heldout" and ids is None:',
        "        if False:",
        "tests/store/test_prune.py -k nothing_else",
    ),
    Mutation(
        "what a prune that never came to be has left goes",
        "store/prune.py",
        "        clear_heldout(corpus, folder, paths, pruned=pruned is not None and pruned.heldout)\n",
        "",
        "tests/store/test_prune.py -k killed",
    ),
    Mutation(
        "a commit that meets a prune asks its hashes",
        "capture/commit.py",
        "                pruned = {one.name: said for one, said in listed(corpus)}.get(record.name)  # meanwhile",
        "                pruned = None",
        "tests/store/test_prune.py -k half_way",
    ),
    # --- corrections
    Mutation(
        "corrected rows aren't gathered from the cache",
        "mixing/reader.py",
        "            if len(one.corrected):\n",
        "            if False:\n",
        "tests/mixing/test_corrections.py -k cache_gives",
    ),
    Mutation(
        "the cache holds what was sealed",
        "mixing/cache.py",
        "        sealed = segment.as_sealed()",
        "        sealed = segment",
        "tests/mixing/test_corrections.py -k on_its_own",
    ),
    Mutation(
        "a copied column isn't a corrected one",
        "store/source.py",
        "        if self.corrections is not None and self.corrections.touches([column.name]):\n            return False\n",
        "",
        "tests/mixing/test_corrections.py -k copied",
    ),
    Mutation(
        "corrections are checked",
        "store/corrections.py",
        "    if problems:\n        return problems\n",
        "",
        "tests/mixing/test_corrections.py -k cant_correct",
    ),
    Mutation(
        "corrections of a pin are compared",
        "store/source.py",
        '        if annotations["version"] and not _says(source, annotations):',
        "        if False:",
        "tests/mixing/test_corrections.py -k arent_those",
    ),
    Mutation(
        "scores depend on corrections",
        "evaluation/slices.py",
        '            narrowed["corrected"] = [one.digest for one in found]\n',
        "            pass\n",
        "tests/mixing/test_corrections.py -k scores",
    ),
    # --- bundles
    Mutation(
        "a bundle's names are those it may have",
        "store/bundle.py",
        "            if not _NAMES.fullmatch(name) or info.filename != name:",
        "            if False:",
        "tests/store/test_bundle.py -k absolute",
    ),
    Mutation(
        "a bundle's files are plain",
        "store/bundle.py",
        "            if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or info.is_dir():",
        "            if False:",
        "tests/store/test_bundle.py -k links",
    ),
    Mutation(
        "a bundle's records have its digest",
        "store/bundle.py",
        "        if content.hexdigest() != self.manifest.digest:",
        "        if False:",
        "tests/store/test_bundle.py -k existing-other",
    ),
    Mutation(
        "a bundle's documents have their digests",
        "store/bundle.py",
        "        if hashlib.sha256(data).hexdigest() != self.entries[name].sha256:",
        "        if False:",
        "tests/store/test_bundle.py -k flipped",
    ),
    Mutation(
        "a bundle never comes to more than it says",
        "store/bundle.py",
        "        if self.bytes > self._most:",
        "        if False:",
        "tests/store/test_bundle.py -k bomb",
    ),
    Mutation(
        "a bundle's batches aren't compressed themselves",
        "store/bundle.py",
        '    return "batch that is compressed itself" if field(inner, 3) else "batch"',
        '    return "batch"',
        "tests/store/test_bundle.py -k compressed",
    ),
    Mutation(
        "ids that are there refuse a bundle",
        "store/bundle.py",
        "        if same is None and there.found:",
        "        if False:",
        "tests/store/test_bundle.py -k ids_that_are_there",
    ),
    Mutation(
        "what was cut short on the way in is undone",
        "store/landing.py",
        "        else:\n            _undo(corpus, path)\n",
        "",
        "tests/store/test_bundle.py -k killed",
    ),
    Mutation(
        "records that come in beside a bundle stop it",
        "store/landing.py",
        "        if landed != head.version + 1:",
        "        if False:",
        "tests/store/test_bundle.py -k same_moment",
    ),
    # --- lineage and backfill
    Mutation(
        "lineage leaves out what was excluded",
        "registry/trace.py",
        '            if any(len(batch) for batch in only.scan(["id"], "train")):',
        '            if any(len(batch) for batch in only.scan(["id"])):',
        "tests/registry/test_lineage.py -k excluded",
    ),
    Mutation(
        "a period that is sealed isn't sealed again",
        "capture/backfill.py",
        '        return period < (self._begun or "") or period <= (self._sealed or "")',
        "        return False",
        "tests/capture/test_backfill.py -k again",
    ),
    Mutation(
        "live that holds anything else stops a backfill",
        "capture/backfill.py",
        '            if new and period > (self._sealed or ""):',
        "            if False:",
        "tests/capture/test_backfill.py -k anything_else",
    ),
    Mutation(
        "a probe that does worse recovers nothing",
        "evaluation/probe.py",
        "recovered = min(drop, max(0.0, probe - final))",
        "recovered = min(drop, probe - final)",
        "tests/evaluation/test_probe.py",
    ),
    Mutation(
        "no more is recovered than was lost",
        "evaluation/probe.py",
        "recovered = min(drop, max(0.0, probe - final))",
        "recovered = max(0.0, probe - final)",
        "tests/evaluation/test_probe.py",
    ),
    Mutation(
        "rare classes weigh the same in the probe",
        "evaluation/probe.py",
        "/ np.sqrt(counts[codes])[:, None]",
        "/ 1.0",
        "tests/evaluation/test_probe.py -k how_often",
    ),
    Mutation(
        "forgetting is severe once it lasts",
        "evaluation/findings.py",
        "ok = before >= SEVERE_BWT",
        "ok = False",
        "tests/evaluation/test_findings.py -k severe",
    ),
    Mutation(
        "a loss is better the lower",
        "evaluation/matrix.py",
        'after - before if self.better == "higher" else before - after',
        "after - before",
        "tests/evaluation/test_matrix.py -k loss",
    ),
    Mutation(
        "live is looked at with nothing stored",
        "rounds/evaluate.py",
        "fresh=fresh or tolerance is not None",
        "fresh=fresh",
        "tests/rounds/test_elsewhere.py -k canary",
    ),
    Mutation(
        "a prune looks anew when a neighbour prunes meanwhile",
        "registry/prune.py",
        "            if listed(corpus) == there:",
        "            if True:",
        "tests/store/test_prune.py -k neighbour",
    ),
    Mutation(
        "files that are written together fail together",
        "capture/importer.py",
        "            one.summary.error = one.summary.error or exc",
        "            pass",
        "tests/capture/test_imports.py -k share_goes_wrong",
    ),
    Mutation(
        "small files whose worker died are read again",
        "capture/importer.py",
        "                self._take_alone(at)",
        "                pass",
        "tests/capture/test_import_workers.py -k small_files_whose_worker_dies",
    ),
    Mutation(
        "what is wrong with a record is said of its own file",
        "capture/chunks.py",
        "                _, refused = chunks[bisect_right(chunks, start + at, key=itemgetter(0)) - 1]",
        "                _, refused = chunks[0]",
        "tests/capture/test_import_workers.py -k several_files_become",
    ),
    Mutation(
        "an import that was cut short goes on where it was, among small files too",
        "capture/importer.py",
        "    return size if origin is None or position_key(origin, found.st_ino or None) not in begun else None",
        "    return size",
        "tests/capture/test_import_workers.py -k small_file_whose_import_was_cut_short",
    ),
    Mutation(
        "annotations that are being made aren't there yet",
        "store/table.py",
        "        return None if self.is_unmade() else head  #",
        "        return head  #",
        "tests/store/test_annotations.py -k being_made",
    ),
    Mutation(
        "what waits in the spool is compared before a prune",
        "registry/prune.py",
        "            flush_spools(corpus)  #",
        "            pass  #",
        "tests/store/test_prune.py -k acknowledged",
    ),
    Mutation(
        "only exact classes go past the validator",
        "schema/by_shape.py",
        "    return pa.array(values, kind) if classes == {_CLASSES.get(kind.id)} else None",
        "    return pa.array(values, kind)",
        "tests/schema/test_by_shape.py",
    ),
    Mutation(
        "unknown members don't go past the validator",
        "schema/by_shape.py",
        "    if not names <= {field.name for field in struct}:",
        "    if False:",
        "tests/schema/test_by_shape.py",
    ),
    Mutation(
        "rules are checked in columns when the validator is passed by",
        "schema/record_type.py",
        "return None if self._bad_rows(batch).any() else batch",
        "return batch",
        "tests/schema/test_by_shape.py",
    ),
    Mutation(
        "a canary knows what was before its own look",
        "rounds/evaluate.py",
        "            found[piece.name] = last",
        "            pass",
        "tests/rounds/test_elsewhere.py -k live",
    ),
    Mutation(
        "a model from elsewhere doesn't change its mind",
        "registry/registry.py",
        '        if changed:\n            raise ConflictError(\n                f"{record.ref} has other predictions',
        '        if False:\n            raise ConflictError(\n                f"{record.ref} has other predictions',
        "tests/rounds/test_elsewhere.py -k mind",
    ),
    Mutation(
        "a doubled prediction is named",
        "evaluation/predictions.py",
        "    if doubled:\n",
        "    if False:\n",
        "tests/rounds/test_elsewhere.py -k doubled",
    ),
    Mutation(
        "ids are kept as hashes",
        "evaluation/predictions.py",
        'return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()',
        "return name",
        "tests/rounds/test_elsewhere.py -k no_name",
    ),
    Mutation(
        "a baseline is no candidate",
        "registry/registry.py",
        "return fold(there, events, {number for number in there if BASELINE in names[number]})",
        "return fold(there, events)",
        "tests/rounds/test_elsewhere.py -k no_candidate",
    ),
    Mutation(
        "a policy's test sets lie beside it",
        "evaluation/gate.py",
        "else str(policy.parent / path)",
        "else path",
        "tests/rounds/test_elsewhere.py -k judges",
    ),
    Mutation(
        "scores of a policy are fractions of 1",
        "evaluation/gate.py",
        "                if value is not None and value > 1:",
        "                if False:",
        "tests/evaluation/test_gate.py",
    ),
    Mutation(
        "other domains' gates stay",
        "training/only.py",
        "kept[:, number] = gradient[:, number]",
        "kept[:] = gradient",
        "tests/training/test_only.py -k gates",
    ),
    Mutation(
        "weights that aren't trained don't decay",
        "training/loop.py",
        "decay = 0.0 if config.only else config.weight_decay",
        "decay = config.weight_decay",
        "tests/training/test_only.py -k gates",
    ),
    Mutation(
        "a stopped run keeps what was good",
        "training/loop.py",
        "                    looked.tensors(net)\n",
        "                        pass\n",
        "tests/rounds/test_diagnose.py -k ends_the_run",
    ),
    Mutation(
        "what was learnt isn't production's sample",
        "rounds/diagnose.py",
        "known = segment.ref in learned or overlaps",
        "known = overlaps",
        "tests/rounds/test_diagnose.py -k several_intents",
    ),
    # --- rounds, the gate's budget, the report
    Mutation(
        "a round that was killed finds the adapter that it had added",
        "rounds/driver.py",
        "        if done:  # killed",
        "        if False:  # killed",
        "tests/rounds/test_round.py -k not_done_twice",
    ),
    Mutation(
        "a round that was killed finds the verdict that it had asked for",
        "rounds/driver.py",
        "known[-1] if known else gate(",
        "gate(",
        "tests/rounds/test_round.py -k not_done_twice",
    ),
    Mutation(
        "a round doesn't promote again what was rolled back",
        "rounds/driver.py",
        'if not any(event.event == "promote" and event.adapter == number for event in self.registry.events()):',
        "if True:",
        "tests/rounds/test_round.py -k not_done_twice",
    ),
    Mutation(
        "a round goes on with the config that it began with",
        "rounds/driver.py",
        "self.config = RoundConfig.recalled(self.plan.config)",
        "self.config = settings",
        "tests/rounds/test_round.py -k its_own_config",
    ),
    Mutation(
        "a round doesn't train again on what was refused",
        "rounds/driver.py",
        "plan.seals is None and _is_again(store, plan, last)",
        "False",
        "tests/rounds/test_round.py -k until_something_changes",
    ),
    Mutation(
        "a webhook's address isn't kept",
        "rounds/documents.py",
        ', exclude={"webhook", "track"})',
        ")",
        "tests/rounds/test_round.py -k webhook_that_refuses",
    ),
    Mutation(
        "a webhook isn't told twice",
        "rounds/driver.py",
        "if self.settings.webhook is None or self.journal.notified is not None:",
        "if self.settings.webhook is None:",
        "tests/rounds/test_round.py -k webhook_is_told",
    ),
    Mutation(
        "a webhook's redirects aren't followed",
        "rounds/webhook.py",
        "urllib.request.build_opener(_NoRedirect)",
        "urllib.request.build_opener()",
        "tests/rounds/test_round.py -k webhook_that_refuses",
    ),
    Mutation(
        "a killed run's number is taken up again",
        "registry/registry.py",
        "claimed = None if run is None else",
        "claimed = None if True else",
        "tests/registry/test_runs.py",
    ),
    Mutation(
        "the gate refuses what is too slow",
        "evaluation/gate.py",
        "value > maximum:",
        "False:",
        "tests/rounds/test_budget.py -k too_slow",
    ),
    Mutation(
        "latency is measured without kept activations",
        "rounds/evaluate.py",
        "candidate, cached=False)  # kept",
        "candidate, cached=True)  # kept",
        "tests/rounds/test_budget.py -k kept_activations",
    ),
    Mutation(
        "the report escapes what stands in its drawings",
        "report/charts.py",
        'text-anchor="{anchor}">{hover}{escape(text)}',
        'text-anchor="{anchor}">{hover}{text}',
        "tests/report/test_report.py -k escaped",
    ),
    Mutation(
        "the report may fetch nothing",
        "report/page.py",
        "default-src 'none'",
        "default-src *",
        "tests/report/test_page.py -k network",
    ),
    # --- plug-ins
    Mutation(
        "plug-ins: a DataLoader around a loader is refused",
        "mixing/loader.py",
        "def __getitem__(self, number",
        "def _getitem(self, number",
        "tests/plugins/test_guards.py -k around",
    ),
    Mutation(
        "plug-ins: a loader made before its processes were connected is refused",
        "mixing/loader.py",
        "if connected is not None and connected != (self.rank, self.world_size):",
        "if False and connected is not None:",
        "tests/plugins/test_guards.py -k connected",
    ),
    Mutation(
        "plug-ins: processes without a rank are refused",
        "mixing/loader.py",
        'if world_size > 1 and "RANK" not in os.environ:',
        "if False:",
        "tests/plugins/test_guards.py -k without_a_rank",
    ),
    Mutation(
        "plug-ins: other weights reach the loader that a trainer runs",
        "mixing/loader.py",
        "self._endless.reweigh(weights)",
        "pass",
        "tests/plugins/test_hf.py -k weights",
    ),
    Mutation(
        "plug-ins: a trainer's loader is of its process's rank",
        "plugins/hf.py",
        "(loader.rank, loader.world_size) != there:",
        "False:",
        "tests/plugins/test_hf.py -k other_rows",
    ),
    Mutation(
        "plug-ins: TRL learns from the batch that comes next",
        "plugins/trl.py",
        "self._rows.rows = rows_of(batch)",
        "rows_of(batch)",
        "tests/plugins/test_trl.py -k unbroken",
    ),
    Mutation(
        "plug-ins: TRL isn't given what is not to be learnt",
        "plugins/trl.py",
        'message.get("weight") == 0',
        "False",
        "tests/plugins/test_trl.py -k not_to_be_learnt",
    ),
    Mutation(
        "plug-ins: Lightning's checkpoint counts what was trained on, not what was fetched",
        "plugins/lightning.py",
        'return {"loader": self._stream.state(self._trained())}',
        'return {"loader": self._stream.loader.state_dict()}',
        "tests/plugins/test_lightning.py -k unbroken",
    ),
    Mutation(
        "plug-ins: a loader that Lightning asks for anew goes on with the events of the one before",
        "plugins/lightning.py",
        "if self._resume is None and self._of is trainer:",
        "if False:",
        "tests/plugins/test_lightning.py -k anew",
    ),
    Mutation(
        "plug-ins: accelerate doesn't shard what has its rank's rows",
        "plugins/torchdata.py",
        "_is_accelerate_prepared = True",
        "_is_accelerate_prepared = False",
        "tests/plugins/test_guards.py -k accelerate_leaves",
    ),
    # --- export
    Mutation(
        "what annotations exclude isn't exported",
        "mixing/export.py",
        'if split == "all" and len(dropped):',
        "if False:",
        "tests/mixing/test_export.py -k every_record",
    ),
    Mutation(
        "the schedule of a lock is settled as a loader settles it",
        "mixing/export.py",
        "if course.adaptive and course.settle(batch, None, leads=True):",
        "if False:",
        "tests/mixing/test_export.py -k schedule",
    ),
    Mutation(
        "an export looks once more before it takes its name",
        "mixing/target.py",
        "        self._check_free()  # somebody",
        "        # somebody",
        "tests/mixing/test_export.py -k while_it_is",
    ),
    Mutation(
        "no folder that holds more than a dataset is replaced",
        "mixing/target.py",
        "if strange and self._force:",
        "if False:",
        "tests/mixing/test_export.py -k more_than_a_dataset",
    ),
    Mutation(
        "exported text ends no line and steers no terminal",
        "formats/writers/json_lines.py",
        "return _CONTROLS.sub",
        "return text or _CONTROLS.sub",
        "tests/formats/test_writers.py -k steers",
    ),
]


def main() -> int:
    """Exit code 0 when every chosen mutation turns a test red."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutations whose names have one of these words")
    parser.add_argument("--list", action="store_true", help="only name them")
    parser.add_argument("--jobs", type=int, default=1, help="mutations tried at the same time")
    args = parser.parse_args()
    chosen = [m for m in MUTATIONS if not args.words or any(word in m.name for word in args.words)]
    if args.list:
        print("\n".join(f"{m.name} ({m.file}; {m.tests})" for m in chosen))
        return 0
    # A shell starts what is in the background with SIGINT ignored, and tests about Ctrl-C would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="treering-mutate-") as directory, ThreadPool(args.jobs) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for job in range(args.jobs):
            trees.put(copied(Path(directory) / f"tree{job}"))

        def tried(mutation: Mutation) -> tuple[Mutation, str]:
            tree = trees.get()
            try:
                return mutation, try_out(mutation, tree)
            finally:
                trees.put(tree)

        for mutation, said in pool.imap(tried, chosen):
            unnoticed += not said.startswith("red")
            print(f"{said:<12} {mutation.name}", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} guards have a test that notices when they are gone")
    return int(unnoticed > 0)


def copied(tree: Path) -> Path:
    """All that tests need, under `tree`."""
    tree.mkdir()
    for part in ("src", "tests", "schemas", "benchmarks", "scripts", "docs", "pyproject.toml", "README.md"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tree / part)
    return tree


def try_out(mutation: Mutation, tree: Path) -> str:
    """Take the guard out, run the tests, put it back."""
    path = tree / "src" / "treering" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        return f"FOUND {text.count(mutation.old)}×"
    path.write_text(text.replace(mutation.old, mutation.new))
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = ["-q", "-x", "-n0", "-p", "no:cacheprovider", "--timeout=120", *mutation.tests.split()]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=tree,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
    finally:
        path.write_text(text)
        end_all_of(tree)
    if done.returncode not in (0, 1):
        print(done.stdout[-2_000:], done.stderr[-500:], file=sys.stderr)
        return f"ERROR {done.returncode}"
    return f"{'red' if done.returncode == 1 else 'UNNOTICED'} {time.monotonic() - began:.0f} s"


def end_all_of(tree: Path) -> None:
    """End what tests have left behind: without its guard a worker may spin for ever, and slow down all that comes after it."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.fsencode(tree) in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
