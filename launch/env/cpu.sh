# shellcheck shell=bash
# Memory for work on CPUs: `source launch/env/cpu.sh` in the shell that starts the program.
# XLA asks for a training step's working memory anew at every step. The C library gives blocks of
# that size back at once, and the kernel clears every page of the next ones. tcmalloc keeps them, and
# is quicker with the many small blocks that compiling asks for. What is set already stays.
for tcmalloc in /usr/lib/*/libtcmalloc_minimal.so.4 /usr/lib*/libtcmalloc_minimal.so.4; do
  if [[ -e $tcmalloc ]]; then break; fi
done
if [[ -e $tcmalloc ]]; then
  export LD_PRELOAD="${LD_PRELOAD:+$LD_PRELOAD:}$tcmalloc"
else
  echo "warning: libtcmalloc_minimal.so.4 is not in /usr/lib; install libtcmalloc-minimal4" \
    "(Debian, Ubuntu) or gperftools-libs (Fedora)" >&2
fi
unset tcmalloc
