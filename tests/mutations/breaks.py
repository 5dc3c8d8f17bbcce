"""Deliberate breaks of the engine, each with the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """One wrong change.

    Attributes:
        title: What is wrong then.
        file: The file that is changed, from the root of the repository.
        old: Text that it holds exactly once.
        new: What stands there instead.
        tests: What pytest is given; at least one of them must fail.
    """

    title: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_WRITER = "tensordb/payloads/writer.py"
_APPENDER = "tensordb/payloads/appender.py"
_SESSION = "tensordb/catalog/session.py"
_LOCKS = "tensordb/catalog/locks.py"

BREAKS = (
    Break(
        "payload bytes are not synced",
        _WRITER,
        "        files.sync_file(self._descriptor)\n",
        "",
        ("tests/faults/test_order.py", "-k", "first_segment"),
    ),
    Break(
        "the name of a segment is not synced",
        _WRITER,
        "            files.sync_directory(self._path.parent)\n",
        "",
        ("tests/faults/test_order.py", "-k", "first_segment"),
    ),
    Break(
        "the name of the folder of segments is not synced",
        _WRITER,
        "            files.sync_directory(self._path.parent.parent)\n",
        "",
        ("tests/faults/test_order.py", "-k", "first_segment"),
    ),
    Break(
        "the name of the write-ahead log is not synced",
        _SESSION,
        "                self._lease.secure_log()\n",
        "",
        ("tests/faults/test_order.py", "-k", "log_has_a_durable_name"),
    ),
    Break(
        "the folders above a new database are not synced",
        "tensordb/payloads/files.py",
        "        files.sync_directory(each.parent)\n",
        "",
        ("tests/faults/test_order.py", "-k", "new_database"),
    ),
    Break(
        "the commit does not wait for the payloads",
        "tensordb/payloads/segments.py",
        "            self._appender.flush()\n",
        "            pass\n",
        ("tests/faults/test_order.py", "-k", "first_segment"),
    ),
    Break(
        "a failed sync is taken for a good one",
        _APPENDER,
        """        except OSError as error:
            with self._lock:
                self._failures += 1
                self._retire(writer, sealed=True)
            return error
""",
        """        except OSError:
            return None
""",
        ("tests/payloads/test_damage.py", "-k", "failed_sync"),
    ),
    Break(
        "what a failed write left behind is not cut off",
        _WRITER,
        "            os.lseek(self._descriptor, self.end, os.SEEK_SET)\n        except OSError:",
        "        except OSError:",
        ("tests/payloads/test_damage.py", "tests/payloads/test_contract.py", "-k", "limit or given_up"),
    ),
    Break(
        "the checksums of frames are not compared",
        "tensordb/encoding/frames.py",
        "        if found != expected:",
        "        if False:",
        ("tests/faults/test_damage.py", "-k", "exactly_the_damaged"),
    ),
    Break(
        "the checksum of a payload's header is not compared",
        "tensordb/encoding/format.py",
        "    if _header_checksum(payload[:8], payload[16:size]) != checksum or any(payload[size:end]):",
        "    if any(payload[size:end]):",
        ("tests/encoding/test_damage.py", "-k", "every_flipped_bit"),
    ),
    Break(
        "a segment of another database is read",
        "tensordb/payloads/layout.py",
        "    if found_database != database_id:",
        "    if False:",
        ("tests/payloads/test_damage.py", "-k", "another_database"),
    ),
    Break(
        "a map is read beyond the end of its file",
        "tensordb/payloads/maps.py",
        "        if found.mapping.size() < end:",
        "        if False:",
        ("tests/payloads/test_damage.py", "-k", "cut_short"),
    ),
    Break(
        "raw bytes are read from one byte too far",
        "tensordb/encoding/chunks.py",
        "        begin = span[0] + (start - first * per_chunk) * self.itemsize",
        "        begin = span[0] + (start - first * per_chunk) * self.itemsize + 1",
        ("tests/storage/test_views.py", "-k", "index or slice or part or row"),
    ),
    Break(
        "whoever wants the catalog walks past the gate",
        _LOCKS,
        "        if not _take(self._gate, exclusive=True, deadline=deadline, pause=GATE_PAUSE):",
        "        if False:",
        ("tests/catalog/test_locks.py",),
    ),
    Break(
        "a writer shares the catalog with readers",
        _LOCKS,
        "            if not _take(self._lock, exclusive=exclusive, deadline=deadline, pause=LOCK_PAUSE):",
        "            if not _take(self._lock, exclusive=False, deadline=deadline, pause=LOCK_PAUSE):",
        ("tests/catalog/test_locks.py",),
    ),
    Break(
        "what was remembered outlives the connection",
        _SESSION,
        "        if self._lease.epoch != self._epoch:\n            self.forget()",
        "        if self._lease.epoch != self._epoch:\n            pass",
        ("tests/faults/test_stale.py",),
    ),
    Break(
        "what was remembered outlives a write",
        "tensordb/catalog/remembered.py",
        "            self._lookups, self._counts, self._mirrors, self._objects = {}, {}, {}, {}",
        "            pass",
        ("tests/faults/test_stale.py",),
    ),
    Break(
        "what was remembered outlives a rollback",
        _SESSION,
        "        self.known = Remembered()\n        try:",
        "        try:",
        ("tests/faults/test_stale.py",),
    ),
    Break(
        "a commit that raised is taken for a failure",
        _SESSION,
        "            if not self._is_committed(raised.probe):",
        "            if True:",
        ("tests/faults/test_nth_failure.py", "-k", "commit_that_raised"),
    ),
    Break(
        "a commit that raised is taken for done",
        _SESSION,
        "            if not self._is_committed(raised.probe):",
        "            if False:",
        ("tests/storage/test_failed_commits.py", "-x"),
    ),
    Break(
        "gc removes what a writer is about to name",
        _WRITER,
        "        if not try_lock(descriptor) or is_pinned(descriptor) or not os.fstat(descriptor).st_nlink:",
        "        if not os.fstat(descriptor).st_nlink:",
        ("tests/payloads/test_contract.py", "tests/faults/test_reclaim.py", "-k", "in_use or running_insert"),
    ),
    Break(
        "compaction copies damage",
        "tensordb/engine/moving.py",
        "            PayloadReader(payload).verify()  # damage must not be copied and its source removed\n",
        "            pass\n",
        ("tests/faults/test_compact_again.py",),
    ),
    Break(
        "an object goes with the last but one record that names it",
        "tensordb/catalog/objects.py",
        "DELETE FROM tensordb.objects WHERE refs <= 0 AND",
        "DELETE FROM tensordb.objects WHERE refs <= 1 AND",
        ("tests/faults/test_stale.py", "-k", "share"),
    ),
    Break(
        "a forked child closes its parent's connection as its own",
        "tensordb/catalog/connection.py",
        '            connection.execute("PRAGMA disable_checkpoint_on_shutdown")',
        "            pass",
        ("tests/catalog/test_lease_fork.py", "-k", "survives_its_own_kill"),
    ),
    Break(
        "repair lets damaged records stay",
        "tensordb/maintenance/repairing.py",
        "                objects.release(con, records.delete(con, row, numbers))",
        "                pass",
        ("tests/faults/test_repair.py", "-k", "names_it"),
    ),
    Break(
        "repair removes what was found damaged without looking again",
        "tensordb/maintenance/repairing.py",
        "still = damaged_records(db, name, sorted(same), Findings())",
        "still = list(damaged)",
        ("tests/maintenance/test_repair_meanwhile.py", "-k", "nobody_mended"),
    ),
    Break(
        "what a newer release wrote is taken for damage",
        "tensordb/maintenance/judging.py",
        " and not isinstance(error, UnsupportedFormatError)",
        "",
        ("tests/maintenance/test_unreadable.py", "-k", "newer_version"),
    ),
    Break(
        "blocks of the catalog are not compared",
        "tensordb/catalog/blocks.py",
        "checksum(words[1:]) == words[0]",
        "True",
        ("tests/faults/test_sweep.py", "-k", "held_to_its_checksum or names_a_damaged"),
    ),
    Break(
        "salvage gives up a catalog for one damaged block",
        "tensordb/catalog/rebuilding.py",
        "        except IntegrityError:\n            return False",
        "        except IntegrityError:\n            raise",
        ("tests/faults/test_salvage.py", "-k", "rows_of_a_damaged_block"),
    ),
    Break(
        "a record that others changed comes from the cache",
        "tensordb/engine/caching/cache.py",
        "if place is None or word is None or place.word != word:",
        "if place is None or word is None:",
        ("tests/storage/test_cache_tiers.py", "-k", "one_by_one and this_process"),
    ),
    Break(
        "records read together are of two moments",
        "tensordb/datasets/cached.py",
        "if word is None or db.catalog.generation.records() != word:",
        "if word is None:",
        ("tests/storage/test_cache_tiers.py", "-k", "one_moment"),
    ),
    Break(
        "the cache hands out its own tensor",
        "tensordb/datasets/cached.py",
        "        tensor = decoded.clone()\n",
        "        tensor = decoded\n",
        ("tests/storage/test_cache_tiers.py", "-k", "changes_no_other and one_by_one"),
    ),
    Break(
        "small tensors from a file are not verified",
        "tensordb/encoding/short.py",
        "if not chunks.frames.trusted:",
        "if False:",
        ("tests/storage/test_cache_tiers.py", "-k", "verified_every_time"),
    ),
    Break(
        "repair leaves files that are damaged beside their payloads",
        "tensordb/maintenance/rewriting.py",
        "        move_segment(db, segment)\n",
        "        pass\n",
        ("tests/maintenance/test_repair_segments.py",),
    ),
    Break(
        "what was remembered outlives a rollback, and the model alone looks",
        _SESSION,
        "        self.known = Remembered()\n        try:",
        "        try:",
        ("tests/stateful",),
    ),
    Break(
        "gc removes what a writer is about to name, and a crowd alone looks",
        _WRITER,
        "        if not try_lock(descriptor) or is_pinned(descriptor) or not os.fstat(descriptor).st_nlink:",
        "        if not os.fstat(descriptor).st_nlink:",
        ("tests/faults/test_crowd.py", "-k", "threads_and_forks or compact_beside"),
    ),
    Break(
        "markup in names and metadata reaches notebooks",
        "tensordb/display.py",
        "<td>{html.escape(cell)}</td>",
        "<td>{cell}</td>",
        ("tests/hostile/test_names.py", "tests/hostile/test_entry_points.py"),
    ),
    Break(
        "segments that nothing names are kept, and the soak alone looks",
        "tensordb/maintenance/rewriting.py",
        "        return sum(db.payloads.remove(info.id) for info in dead)",
        "        return len(dead)",
        ("tests/faults/test_soak.py",),
    ),
    Break(
        "damage that is no padding is taken for some",
        "tensordb/catalog/proving.py",
        "return _rows(as_it_is) == _rows(with_zeros)",
        "return True",
        ("tests/faults/test_salvage_catalog.py", "-k", "in_the_midst"),
    ),
    Break(
        "a byte is put right that is one of several which explain a checksum",
        "tensordb/catalog/block_mending.py",
        "if len(found) != 1 or _bits_reached(data) < _BYTE_BITS:",
        "if not found:",
        ("tests/faults/test_salvage_catalog.py", "-k", "among_values"),
    ),
    Break(
        "tensors whose names are lost are not kept",
        "tensordb/salvage.py",
        "        if rebuilt.unnamed:",
        "        if False:",
        ("tests/faults/test_salvage_catalog.py", "-k", "checkpoints_that_are_lost"),
    ),
)
