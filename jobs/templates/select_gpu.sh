# Each rank sees one GPU of its node. (--gpus-per-task would keep GPUs from copying to one another.)
# shellcheck disable=SC2016  # the rank's own variable
select_gpu=(bash -c 'export ROCR_VISIBLE_DEVICES=$SLURM_LOCALID; exec "$@"' select_gpu)
