# shellcheck shell=sh
# What a process in an image finds in its environment, whatever the host's is. %environment reads it; so does whoever
# starts the image with a runtime that does not know %environment:  . /opt/fedhpc/share/run_environment.sh

export PATH="/opt/fedhpc/bin:${PATH:-/usr/bin:/bin}"

# Nothing of the host's Python: modules of a cluster set the first two, ~/.local would come in by the third.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1

# The host's TMPDIR is often a folder of the job that is not bound in, and MPI opens its sockets there.
[ -d "${TMPDIR:-/tmp}" ] || export TMPDIR=/tmp

# Users of a cluster have no line in the image's passwd, and PyTorch asks for a name.
export USER="${USER:-fedhpc}"

# PMIx hands its tables over as files in the launcher's folder unless it is told not to; that folder is not in here.
export PMIX_MCA_gds="${PMIX_MCA_gds:-hash}"

# With MPI=host: MPI_DIR is the cluster's MPI, bound in under the same path.
if [ "${FEDHPC_IMAGE_MPI:-}" = host ] && [ -n "${MPI_DIR:-}" ]; then
    export LD_LIBRARY_PATH="$MPI_DIR/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

# Not set here, since they cost speed where they are not needed (containers/README.md, "MPI in an image"):
#   OMPI_MCA_btl_vader_single_copy_mechanism=none   Open MPI 4, ranks in user namespaces of their own: no CMA
#   UCX_TLS=sysv,ib                                 UCX, likewise
