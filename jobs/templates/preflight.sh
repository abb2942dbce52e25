# Before the ranks start: what a minute can find out need not cost an hour. A failure is not submitted again.
@@one@@ @@inside@@ -m fedhpc doctor --quick "$site" --federation "$federation" --out "$run" --profile @@profile@@
code=$?
if ((code)); then
  say "the checks before the start failed: the job is not submitted again"
  drop_successors
  exit "$code"
fi
