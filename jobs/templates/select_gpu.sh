bash -c 'export ROCR_VISIBLE_DEVICES=$SLURM_LOCALID; exec "$@"' select_gpu
