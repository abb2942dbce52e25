# The second part of the heterogeneous job: a node with a route carries what the others leave in the spool.
srun --het-group=1 --ntasks=1 --export=ALL @@inside@@ -m fedhpc spool carry "$federation" --site "$site" --watch &
carrier=$!
trap 'kill "$carrier" 2>/dev/null' EXIT
