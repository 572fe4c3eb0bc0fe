"""Aggregation on one node: threads, and nothing that listens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

#: The payload of slurm/scripts/aggregate.sbatch in a process that must not listen on anything.
_ALONE = """
import json, socket, sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, words: opened.append(event) if event in ("socket.bind", "socket.connect") else None)
from jobs.spread import aggregate_spread
from sparsehpc.core.layout import RunFolder
counts = aggregate_spread(RunFolder(Path(sys.argv[1])), Path(sys.argv[2]), 0, 1)
print(json.dumps([counts, opened]))
"""


def test_one_task_aggregates_by_threads_without_a_port(run_copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spread"
    words = [sys.executable, "-c", _ALONE, str(run_copy), str(folder)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    counts, opened = json.loads(answer.stdout.splitlines()[-1])
    assert counts["done"] == counts["expected"] == 3
    assert opened == []
    assert not folder.exists(), "no certificates either"
