# What srun starts is one word of its file, so the words that lead into the image are a script.
export FEDHPC_PROGRAM_INSIDE=$jobs/$name.inside
printf 'exec %s "$@"\n' "${inside[*]@Q}" > "$FEDHPC_PROGRAM_INSIDE"
