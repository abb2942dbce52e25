# srun reads the programs of its ranks from a file, which cannot hold every path: the paths come as variables.
export FEDHPC_PROGRAM_PYTHON=@@python@@ FEDHPC_PROGRAM_FEDERATION=$federation FEDHPC_PROGRAM_RUN=$run
@@sites@@
programs=$jobs/$name.conf
cat > "$programs" <<'PROGRAMS'
@@lines@@
PROGRAMS
