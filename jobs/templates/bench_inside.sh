# ReFrame stays outside and starts ranks by one word of shell, so the words that lead into the image are a script.
printf 'exec %s "$@"\n' "${inside[*]@Q}" > "$jobs/$name.inside"
export FEDHPC_SUITE_PYTHON="bash ${jobs@Q}/${name@Q}.inside"
