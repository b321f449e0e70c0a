#!/usr/bin/env bash
# Trains a network on CUB-200-2011 and publishes it, on a machine that has a GPU and nothing else: a Hugging Face Job.
#
#   HF_TOKEN=... scripts/cub_job.sh ORG/NAME [OPTION=VALUE...] [NAME]
#
# Installs the package, fetches timm's scripts and the archive (1.1 GB), trains NAME (stn_resnet50_cub) by
# scripts/train_cub.sh, which takes the OPTIONs, and pushes its last epoch and its result.json to the repository
# ORG/NAME. Options, NAME, weights and GPU are tried first, then whether HF_TOKEN is allowed to write there.
# OPTIONs of its own: WORK (cub; a folder for everything; in one that outlives the job, another job goes on), ARCHIVE
# (Caltech's; a URL or a file), SUBSET (1: it may be a part of the set), LICENSE (of the weights; default: unknown),
# DRY_RUN (1: publishes nothing), PYTHON (python), CHECK (1: only tries options, NAME, weights and GPU).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if (($# < 1)) || [[ $1 != ?*/?* || $1 == *=* ]]; then
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
REPO=$1 RECIPE=${RECIPE:-sgd} SEED=${SEED:-0} NAME='' OPTIONS=()
shift
for word; do
    case $word in
        WORK=* | ARCHIVE=* | SUBSET=* | LICENSE=* | DRY_RUN=* | CHECK=*) declare "$word" ;;
        RECIPE=* | SEED=* | PYTHON=*) declare "$word"; OPTIONS+=("$word") ;;
        *=*) OPTIONS+=("$word") ;;
        *) [[ -z $NAME ]] || { echo "one NAME a job, got $NAME and $word" >&2; exit 2; }; NAME=$word ;;
    esac
done
NAME=${NAME:-stn_resnet50_cub} PYTHON=${PYTHON:-python} DRY_RUN=${DRY_RUN:-} CHECK=${CHECK:-}
WORK=$(realpath -m "${WORK:-cub}")
CALTECH=https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz
MD5=97eceeb196236b17998738112f37df78

{  # read whole, for the file may change while it runs
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
"$PYTHON" -c 'import timm_stn.run' 2>/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 "$PYTHON" -m pip install -q "$ROOT"
"$ROOT/scripts/train_cub.sh" "$WORK/data" "$WORK/runs" "${OPTIONS[@]}" CHECK=1 "$NAME"
[[ $CHECK != 1 ]] || exit 0
mkdir -p "$WORK"
[[ $DRY_RUN ]] || "$PYTHON" -c '
import sys
from huggingface_hub import create_repo
create_repo(sys.argv[1], exist_ok=True)' "$REPO"
if [[ -z ${TIMM_SCRIPTS:-} ]]; then
    export TIMM_SCRIPTS=$WORK/pytorch-image-models
    [[ -d $TIMM_SCRIPTS ]] ||
        (cd "$WORK" && $("$PYTHON" -c 'from timm_stn.run import clone_command; print(clone_command())') --depth 1)
fi
if [[ ! -f ${ARCHIVE:=$CALTECH} ]]; then
    URL=$ARCHIVE ARCHIVE=$WORK/CUB_200_2011.tgz
    [[ $URL == "$CALTECH" ]] || { MD5=''; rm -f "$ARCHIVE"; }  # of another one nothing tells whether it is whole
    "$PYTHON" -c '
import sys
from torchvision.datasets.utils import download_url
download_url(*sys.argv[1:4], md5=sys.argv[4] or None)' "$URL" "$WORK" "${ARCHIVE##*/}" "$MD5"
fi
"$PYTHON" -m timm_stn.cli data cub --source "$ARCHIVE" --out "$WORK/data" ${SUBSET:+--subset}

"$ROOT/scripts/train_cub.sh" "$WORK/data" "$WORK/runs" "${OPTIONS[@]}" "$NAME"

RUN=$WORK/runs/$NAME-$RECIPE-$SEED
"$PYTHON" -m timm_stn.cli push "$RUN/last.pth.tar" --repo "$REPO" --no-picture \
    ${LICENSE:+--license "$LICENSE"} ${DRY_RUN:+--dry-run}
[[ $DRY_RUN ]] || "$PYTHON" -c '
import sys
from huggingface_hub import upload_file
upload_file(path_or_fileobj=sys.argv[2], path_in_repo="result.json", repo_id=sys.argv[1])' "$REPO" "$RUN/result.json"
cat "$RUN/result.json"
exit
}
