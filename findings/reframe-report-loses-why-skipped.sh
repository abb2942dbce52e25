#!/usr/bin/env bash
# A check that skips itself says why: `self.skip("...")`, and the screen shows it beside the check's name. One would expect
# the reason in the JSON report, too, which is what programs read. There the check has result "skip", and the reason is
# nowhere in the file. So whoever reads reports of many machines cannot tell "too little memory" from "not this partition".
# A variable of the check that is set before it skips is in the report, and can carry the reason.
#
# Version: ReFrame 4.10.0. Source: reframe/frontend/reporting/__init__.py: an entry has fail_reason of failures only.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet reframe-hpc==4.10.0
cat >"$folder/checks.py" <<'PYTHON'
import reframe as rfm
from reframe.core.builtins import run_after, sanity_function, variable


@rfm.simple_test
class Skipped(rfm.RunOnlyRegressionTest):
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    executable = "true"
    kept = variable(str, value="")

    @run_after("setup")
    def leave_out(self):
        self.kept = "a word in a variable"
        self.skip("a word for people")

    @sanity_function
    def right(self):
        return True
PYTHON
cd "$folder"
"$folder/venv/bin/reframe" --prefix "$folder/out" --report-file "$folder/report.json" -c "$folder/checks.py" -r \
  >"$folder/screen" 2>&1 || true
version=$("$folder/venv/bin/pip" show reframe-hpc 2>/dev/null | sed -n 's/^Version: //p')
seen() { if grep -q "$2" "$folder/$1"; then echo yes; else echo no; fi; }
screen=$(seen screen "a word for people")
report=$(seen report.json "a word for people")
variable=$(seen report.json "a word in a variable")
echo "ReFrame $version"
echo "the reason on the screen: expected yes, seen $screen"
echo "the reason in the report: expected yes, seen $report"
echo "a variable in the report: seen $variable"
[[ $screen == yes && $report == no && $variable == yes ]] || { echo "this has changed" >&2; exit 1; }
