# One task of the array for each federation.toml, each with a run directory of its own.
federations=(@@federations@@)
federation=${federations[SLURM_ARRAY_TASK_ID]}
run=$run/$SLURM_ARRAY_TASK_ID
name=$name-$SLURM_ARRAY_TASK_ID
