#!/usr/bin/env bash
# `task_request_interval`, the seconds after which NVFlare's server lets a client ask for its next task, does nothing at
# the top of config_fed_server.json, where the job API's `to_server({...})` and the recipes' `add_server_config({...})`
# put it: clients go on waiting for its default of 2 s after every task, and no log says that it was ignored. One would
# expect it to be read there, as the clients' `default_task_fetch_interval` and the server's `tensor_download_chunk_size`
# are. It is read below a key "server": to_server({"server": {"task_request_interval": 0.1}}). A federation whose rounds
# are short spends most of their time waiting otherwise, whatever its clients' own interval is.
#
# Versions: nvflare 2.9.0. Source: nvflare/private/fed/server/server_json_config.py (server.task_request_interval) and
# nvflare/private/fed/client/client_runner.py (the interval that the server sent replaces the client's own).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nvflare==2.9.0
cat >"$folder/job.py" <<'PYTHON'
import json
import sys

from nvflare.app_common.np.np_model_persistor import NPModelPersistor
from nvflare.app_common.np.np_trainer import NPTrainer
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob

job = FedJob(name="job", min_clients=1)
job.to_server(NPModelPersistor(), id="persistor")
job.to_server(FedAvg(num_clients=1, num_rounds=2, persistor_id="persistor"))
job.to_server(json.loads(sys.argv[2]))
job.to_clients(NPTrainer(sleep_time=0), tasks=["train"])
job.export_job(sys.argv[1])
PYTHON
# The interval that a client is told to wait, as NVFlare's log gives it after each task.
waits() {
  rm -rf "$folder/jobs" "$folder/run"
  "$folder/venv/bin/python" -W ignore "$folder/job.py" "$folder/jobs" "$1" >/dev/null
  HOME="$folder" "$folder/venv/bin/nvflare" simulator "$folder/jobs/job" -w "$folder/run" -n 1 -t 1 >"$folder/log" 2>&1
  sed -n 's/.*Finished one task run for client.*interval: \([0-9.]*\) task_processed: True.*/\1/p' "$folder/log" | sort -u
}
top=$(waits '{"task_request_interval": 0.1}')
below=$(waits '{"server": {"task_request_interval": 0.1}}')
"$folder/venv/bin/pip" list --format freeze | grep '^nvflare='
echo "seconds that a client waits after a task, task_request_interval 0.1 at the top: expected 0.1, seen $top"
echo "the same below \"server\": seen $below"
if [ "$top" != 2 ] || [ "$below" != 0.1 ]; then
  echo "this has changed" >&2
  exit 1
fi
