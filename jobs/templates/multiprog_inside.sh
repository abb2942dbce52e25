# What srun starts is one word of its file, so the words that lead into the image are a script.
printf 'exec %s "$@"\n' "${inside[*]@Q}" > "$jobs/$name.inside"
