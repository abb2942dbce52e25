# All of fedhpc runs in this image, which must still be the one that was submitted; it is read once in a job.
image=@@image@@
image_sha256=@@sha256@@
if [[ ! -r $image ]]; then
  say "the image $image cannot be read on this node: the job is not submitted again"
  drop_successors
  exit 74
fi
if [[ $(sha256sum < "$image") != "$image_sha256 "* ]]; then
  say "the image $image is not the one that was submitted, sha256 $image_sha256: the job is not submitted again"
  drop_successors
  exit 77
fi
@@verify@@
say "container $image, sha256 $image_sha256"
export FEDHPC_CONTAINER_SHA256=$image_sha256
