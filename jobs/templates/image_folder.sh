# All of fedhpc runs in this image. A folder has no SHA-256.
image=@@image@@
say "container $image, a folder without a digest"
unset FEDHPC_CONTAINER_SHA256
