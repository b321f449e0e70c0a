#!/usr/bin/env bash
# Trains ResNet-50 on CUB-200-2011 with timm's own train.py, plain and with spatial transformers, by one recipe.
#
#   TIMM_SCRIPTS=/path/to/pytorch-image-models scripts/train_cub.sh DATA OUTPUT [OPTION=VALUE...] [NAME...]
#
# DATA is what `timm-stn data cub` makes: the folders train and test, each with one folder of images per class. Every
# run gets a folder OUTPUT/NAME-RECIPE-SEED. An interrupted run resumes; a finished run is skipped; one that has trained
# with other WEIGHTS (by the file's digest), EPOCHS, BATCH_SIZE, SIDE, AMP or number of classes is refused.
# NAMEs (plain stn_resnet50_cub): plain, plain_half (ResNet-50 that sees SIDE, or half of it), stn_resnet50_cub,
# stn_resnet50_cub_paper.
# OPTIONs, also from the environment: WEIGHTS (resnet50.tv_in1k; one of timm's ResNet-50 on the Hub, or a file),
# RECIPE (sgd; or adamw), EPOCHS (sgd 100, adamw 60), BATCH_SIZE (32, of all GPUs together), SIDE (448), SEED (0),
# DEVICE (cuda), NPROC (1; GPUs), AMP (bfloat16 on CUDA, else none; or float16), WORKERS (4, of each GPU),
# LOG (0; every so many steps a line and now and then a picture of what the transformers do, in the run's folder),
# PYTHON (python).
# CHECK=1 only tries options, NAMEs, WEIGHTS and DEVICE: DATA need not be there, and nothing is made.
set -euo pipefail

refuse() { echo "$*" >&2; exit 2; }

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if (($# < 2)); then
    sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
DATA=$(realpath -m "$1") OUTPUT=$(realpath -m "$2") CHECK='' NAMES=()
shift 2
for word; do
    case $word in
        WEIGHTS=* | RECIPE=* | EPOCHS=* | BATCH_SIZE=* | SIDE=* | SEED=* | DEVICE=* | NPROC=* | AMP=* | WORKERS=* | \
            LOG=* | PYTHON=* | CHECK=*) declare "$word" ;;
        *=*) refuse "unknown option ${word%%=*}; options: WEIGHTS RECIPE EPOCHS BATCH_SIZE SIDE SEED DEVICE NPROC AMP" \
            "WORKERS LOG PYTHON CHECK" ;;
        plain | plain_half | stn_resnet50_cub | stn_resnet50_cub_paper) NAMES+=("$word") ;;
        *) refuse "unknown run $word; runs: plain plain_half stn_resnet50_cub stn_resnet50_cub_paper" ;;
    esac
done
((${#NAMES[@]})) || NAMES=(plain stn_resnet50_cub)
WEIGHTS=${WEIGHTS:-resnet50.tv_in1k} RECIPE=${RECIPE:-sgd} BATCH_SIZE=${BATCH_SIZE:-32} SIDE=${SIDE:-448}
SEED=${SEED:-0} DEVICE=${DEVICE:-cuda} NPROC=${NPROC:-1} WORKERS=${WORKERS:-4} LOG=${LOG:-0} PYTHON=${PYTHON:-python}
case $RECIPE in
    sgd)  # as mmpretrain's resnet50_8xb8_cub: a rate for 64 images; the shorter side 448 to 600, then any square of 448
        EPOCHS=${EPOCHS:-100}
        recipe=(--opt sgd --momentum 0.9 --weight-decay 5e-4 --lr-base 0.01 --lr-base-size 64
                --train-crop-mode rkrr --scale 0.56 1.0 --ratio 1.0 1.0 --color-jitter 0) ;;
    adamw)  # as train_birds.sh
        EPOCHS=${EPOCHS:-60}
        recipe=(--opt adamw --weight-decay 0.05 --layer-decay 0.85 --lr-base 1e-3 --lr-base-size 32 --scale 0.35 1.0) ;;
    *) refuse "RECIPE takes sgd or adamw, got $RECIPE" ;;
esac
for option in EPOCHS BATCH_SIZE SIDE NPROC; do
    [[ ${!option} =~ ^[1-9][0-9]{0,5}$ ]] || refuse "$option takes a positive number, got ${!option}"
done
for option in SEED WORKERS LOG; do
    [[ ${!option} =~ ^(0|[1-9][0-9]{0,5})$ ]] || refuse "$option takes a number, 0 or more, got ${!option}"
done
case $CHECK in
    '' | 0) CHECK='' ;;
    1) ;;
    *) refuse "CHECK takes 0 or 1, got $CHECK" ;;
esac
((SIDE % 2 == 0 && SIDE >= 64)) || refuse "SIDE takes an even number from 64, got $SIDE"
((BATCH_SIZE % NPROC == 0)) || refuse "BATCH_SIZE takes a multiple of NPROC=$NPROC, got $BATCH_SIZE"
[[ $NPROC == 1 || $DEVICE == cuda ]] || refuse "NPROC takes 1 with DEVICE=$DEVICE, got $NPROC"
if [[ -z ${AMP:-} ]]; then
    [[ $DEVICE == cuda* ]] && AMP=bfloat16 || AMP=none
fi
case $AMP in
    none) device=(--device "$DEVICE") ;;
    bfloat16 | float16) device=(--device "$DEVICE" --amp --amp-dtype "$AMP") ;;
    *) refuse "AMP takes bfloat16, float16 or none, got $AMP" ;;
esac
[[ $DEVICE != cuda* ]] || device+=(--pin-mem)

classes_of() {  # FOLDER: the folders in it that hold photographs
    (cd "$1" && find -L . -mindepth 2 -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' \)) | cut -d/ -f2 |
        LC_ALL=C sort -u
}

if [[ ! $CHECK ]]; then
    above=$OUTPUT
    while [[ ! -e $above ]]; do above=$(dirname "$above"); done
    [[ -d $above && -w $above ]] || refuse "OUTPUT $OUTPUT is no folder that can be written"
    [[ -d $DATA/train && -d $DATA/test ]] ||
        refuse "DATA $DATA has no folders train and test; \`timm-stn data cub\` makes them"
    for split in train test; do
        empty=$(LC_ALL=C comm -23 <(cd "$DATA/$split" && find -L . -mindepth 1 -maxdepth 1 -type d | cut -d/ -f2 |
            LC_ALL=C sort) <(classes_of "$DATA/$split") | sed -n 1p)
        [[ ! $empty ]] || refuse "DATA: no photographs in $DATA/$split/$empty"
    done
    classes=$(classes_of "$DATA/train")
    [[ $classes ]] || refuse "DATA: $DATA/train has no folders of photographs"
    [[ $classes == "$(classes_of "$DATA/test")" ]] || refuse "DATA: not the same classes in $DATA/train and $DATA/test"
    CLASSES=$(wc -l <<<"$classes")
    [[ -f ${TIMM_SCRIPTS:-}/train.py ]] ||
        refuse "TIMM_SCRIPTS must name a checkout:" \
            "$("$PYTHON" -c 'from timm_stn.run import clone_command; print(clone_command())')"
fi
found=$("$PYTHON" "$HERE/train/cub_weights.py" "$WEIGHTS" --device "$DEVICE")
[[ ! $CHECK ]] || exit 0
START=${found#* }
options="WEIGHTS=$(basename "$WEIGHTS") (${found%% *}) EPOCHS=$EPOCHS BATCH_SIZE=$BATCH_SIZE SIDE=$SIDE AMP=$AMP"
options+=", $CLASSES classes"

compare_options() {  # FOLDER: of a run, if anything has trained in it
    local begun
    [[ -f $1/last.pth.tar || -f $1/result.json ]] || return 0
    begun=$(cat "$1/options.txt" 2>/dev/null || echo "unknown options")
    [[ ${begun#*(} == "${options#*(}" ]] || refuse "$1 was begun with $begun, not $options; another OUTPUT keeps both"
}

for name in "${NAMES[@]}"; do compare_options "$OUTPUT/$name-$RECIPE-$SEED"; done
mkdir -p "$OUTPUT"

run=("$PYTHON")
((NPROC == 1)) || run+=(-m torch.distributed.run --standalone --nproc-per-node "$NPROC")
run+=(-m timm_stn.run train.py)

epochs_of() {  # FOLDER: how many a run has finished
    [[ ! -f $1/summary.csv ]] || awk -F, 'NR > 1 {last = $1 + 1} END {print last + 0}' "$1/summary.csv"
}

train() {  # NAME MODEL SIDE [stn_argument=value...]
    local folder=$OUTPUT/$1-$RECIPE-$SEED model=$2 side=$3 resume=() log=() timing=() before seconds epochs
    shift 3
    compare_options "$folder"  # again: another command may have trained since
    if [[ -f $folder/result.json ]]; then
        echo "${folder##*/} is finished"
        return
    fi
    mkdir -p "$folder"
    exec 9>"$folder/lock"
    ! command -v flock >/dev/null || flock -n 9 || (($? > 1)) || refuse "$folder is being trained by another command"
    if [[ -f $folder/last.pth.tar ]]; then
        resume=(--resume "$folder/last.pth.tar")
    else
        rm -f "$folder/summary.csv"
    fi
    echo "$options" >"$folder/options.txt"
    [[ $LOG == 0 || $model == resnet50 ]] || log=(--stn-log "$LOG")
    before=$(epochs_of "$folder") seconds=$SECONDS
    "${run[@]}" --data-dir "$DATA" --train-split train --val-split test --num-classes "$CLASSES" \
        --model "$model" --img-size "$side" ${*:+--model-kwargs "$@"} --pretrained --pretrained-path "$START" \
        --batch-size $((BATCH_SIZE / NPROC)) --epochs "$EPOCHS" "${recipe[@]}" --smoothing 0.1 \
        --sched cosine --sched-on-updates --warmup-epochs $((EPOCHS / 20)) --warmup-lr 1e-5 --min-lr 0 \
        --interpolation bicubic --crop-pct 0.875 --channels-last "${device[@]}" -j "$WORKERS" --seed "$SEED" \
        --val-interval 5 --checkpoint-hist 1 --output "$OUTPUT" --experiment "${folder##*/}" "${resume[@]}" \
        "${log[@]}"
    epochs=$(($(epochs_of "$folder") - ${before:-0})) seconds=$((SECONDS - seconds))
    ((epochs < 1)) || timing=(--seconds-per-epoch "$(awk "BEGIN {print $seconds / $epochs}")")
    "$PYTHON" "$HERE/train/birds_result.py" "$folder" --weights "$(basename "$WEIGHTS")" "${timing[@]}"
}

tell() {  # NAME: what came of it, and what to do with it
    local folder=$OUTPUT/$1-$RECIPE-$SEED last data=$DATA/test boxes=$DATA/test-boxes.csv
    printf -v last %q "$folder/last.pth.tar"
    echo "$folder/result.json: top-1 $(sed -n 's/^ *"top1": \([0-9.]*\),*$/\1/p' "$folder/result.json") %"
    [[ $1 == plain* ]] || printf '  timm-stn show %q%s --checkpoint %s --output look.png\n' "$data" \
        "$([[ ! -f $boxes ]] || printf ' --boxes %q' "$boxes")" "$last"
    echo "  timm-stn push $last --repo USER/$1 --no-picture"
}

half=$((SIDE / 2)) seen=() looked=()
((SIDE == 448)) || seen=(stn_size=$half) looked=(stn_size=$half stn_localization_size=$half)
{  # read whole, for the file may change while it runs
for name in "${NAMES[@]}"; do
    case $name in
        plain) train "$name" resnet50 "$SIDE" ;;
        plain_half) train "$name" resnet50 "$half" ;;
        stn_resnet50_cub) train "$name" "$name" "$SIDE" "${seen[@]}" ;;
        stn_resnet50_cub_paper) train "$name" "$name" "$SIDE" "${looked[@]}" ;;
    esac
done
for name in "${NAMES[@]}"; do tell "$name"; done
exit
}
