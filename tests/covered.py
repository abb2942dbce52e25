"""`make coverage`: what all processes of the tests ran of the package, as one JSON object.

    covered.py FOLDER      combines FOLDER/data.*, writes FOLDER/coverage.json and prints the total

`files` and `total` have the same keys: `statements`, `missing`, `branches`, `missing_branches` and `percent`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from coverage import Coverage

ROOT = Path(__file__).parents[1]
KEYS = {
    "num_statements": "statements",
    "missing_lines": "missing",
    "num_branches": "branches",
    "missing_branches": "missing_branches",
    "percent_covered": "percent",
}


def figures(summary: dict[str, Any]) -> dict[str, float]:
    return {name: round(summary[key], 2) for key, name in KEYS.items()}


def main(folder: Path) -> None:
    coverage = Coverage(data_file=str(folder / "data"), config_file=str(ROOT / "pyproject.toml"))
    coverage.combine([str(folder)])
    coverage.save()
    whole = folder / "lines.json"
    coverage.json_report(outfile=str(whole), ignore_errors=True)
    found = json.loads(whole.read_text())
    files = {name: figures(of["summary"]) for name, of in sorted(found["files"].items())}
    result = {"files": files, "total": figures(found["totals"])}
    whole.unlink()
    (folder / "coverage.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["total"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
