if ! @@command@@ verify @@certificate@@ "$image"; then
  say "the signature of $image does not hold: the job is not submitted again"
  drop_successors
  exit 77
fi
