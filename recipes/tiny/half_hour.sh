#!/usr/bin/env bash
# Train every part of speech and hearing in about half an hour on one large GPU, from packed data.
#
#   recipes/tiny/half_hour.sh codec         first: the others follow its codes        about 5 minutes
#   recipes/tiny/half_hour.sh rest 20       DiT, vocoder, Talker and hearing at once, so many minutes each
#   recipes/tiny/half_hour.sh collect OUT   the best weights and the logs
#
# Needs $T (default ~/.cache/parley/tiny) with speech/ and callers/ unpacked, and an assembled checkpoint in $MODEL.
# Any step may be stopped and run again. The four trainings share the GPU well: each alone is bound by launches.
set -euo pipefail
T=${T:-$HOME/.cache/parley/tiny}
MODEL=${MODEL:-$HOME/.cache/parley/omni-tiny}
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=2
mkdir -p "$T/logs"

train() { # stage, then its arguments
  local stage=$1; shift
  $PYTHON -m "recipes.tiny.$stage" --out "$T/$stage" --device cuda --patience 1000 "$@" > "$T/logs/$stage.log" 2>&1
}

case ${1:-} in
  codec)
    train codec --data "$T/speech" --batch 64 --lr 1e-3 --minutes "${2:-5}"
    ;;
  rest)
    minutes=${2:-20}
    train dit --data "$T/speech" --codec "$T/codec" --batch 128 --lr 1e-3 --minutes "$minutes" &
    train vocoder --data "$T/speech" --batch 32 --lr 5e-4 --adversary-after 5000 --minutes "$minutes" &
    train talker --data "$T/speech" --codec "$T/codec" --checkpoint "$MODEL" --batch 64 --lr 8e-4 --minutes "$minutes" &
    train hearing --data "$T/callers" --checkpoint "$MODEL" --batch 32 --distil-after 1500 --minutes "$minutes" &
    wait
    ;;
  collect)
    for stage in codec dit vocoder talker hearing; do
      [ -e "$T/$stage/best.pt" ] || continue
      mkdir -p "$2/$stage"
      cp "$T/$stage/best.pt" "$T/$stage/log.jsonl" "$2/$stage/"
    done
    cp -r "$T/logs" "$2/"
    ;;
  *)
    sed -n '2,10p' "$0"; exit 2
    ;;
esac
