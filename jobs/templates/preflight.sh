if ! @@one@@ "$python" -m fedhpc doctor --quick "$site"; then
  say "the checks before the start failed: the job is not submitted again"
  drop_successors
  exit 64
fi
