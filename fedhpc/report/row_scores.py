"""The scores of a store's rows as a CSV file, for its owner only: they are data of single persons."""

from __future__ import annotations

import os
from pathlib import Path

from fedhpc.errors import StorageError
from fedhpc.files import sync_folder
from fedhpc.train.exported import Scorer


def write_scores(scorer: Scorer, out: Path) -> int:
    """Write row_id and score, or score_0, score_1, …; gives the number of rows.

    Raises StorageError, and what the scorer raises.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="ascii", newline="") as file:
                for ids, scores in scorer.scores():
                    if not rows:
                        columns = ["score"] if scores.shape[1] == 1 else [f"score_{k}" for k in range(scores.shape[1])]
                        file.write(",".join(["row_id", *columns]) + "\n")
                    names = ids.tobytes().hex()
                    width = 2 * ids.shape[1]
                    line = ",".join(["%s", *["%.9g"] * scores.shape[1]]) + "\n"
                    starts = range(0, len(names), width)
                    lines = zip((names[at : at + width] for at in starts), *scores.T.tolist(), strict=True)
                    file.write("".join([line % cells for cells in lines]))
                    rows += len(scores)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, out)
            sync_folder(out.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror}", "check the folder and the quota") from None
    return rows
