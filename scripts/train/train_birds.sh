#!/usr/bin/env bash
# Fine-tunes a backbone on birds with timm's own train.py, plain and with spatial transformers, by one recipe.
#
#   TIMM_SCRIPTS=/path/to/pytorch-image-models scripts/train/train_birds.sh DATA WEIGHTS OUTPUT [OPTION=VALUE...] [NAME...]
#
# DATA has the folders train and test, each with one folder of images per class. WEIGHTS is the ImageNet checkpoint of
# BASE (model.safetensors of timm/tf_efficientnet_lite0.in1k). Every run gets a folder in OUTPUT. An interrupted run
# resumes; a finished run is skipped; one of another BASE is refused. For every BASE, sides are those of the photographs
# (224 x 224) or less; 448 is that of photographs enlarged twofold.
# NAMEs (all): plain112 zoom112 plain176 plain224 whole2 whole4 glimpses2 glimpses4 one176 zoom192 plain448 whole2at448.
# OPTIONs, also from the environment: BASE (tf_efficientnet_lite0), PYTHON (python), DEVICE (cpu), WORKERS (1),
# EPOCHS (12), SEED (0), OMP_NUM_THREADS (1).
set -euo pipefail

if (($# < 3)); then
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
if [[ ! -d $1/train || ! -d $1/test || ! -f $2 ]]; then
    echo "DATA $1 has no folders train and test, or there is no file WEIGHTS $2" >&2
    exit 2
fi
if ! mkdir -p "$3" || [[ ! -w $3 ]]; then
    echo "OUTPUT $3 is no folder that can be written" >&2
    exit 2
fi
DATA=$(realpath "$1") WEIGHTS=$(realpath "$2") OUTPUT=$(realpath -m "$3")
shift 3
names=()
for word; do
    case $word in
        BASE=* | PYTHON=* | DEVICE=* | WORKERS=* | EPOCHS=* | SEED=* | OMP_NUM_THREADS=*) declare "$word" ;;
        *=*) echo "unknown option ${word%%=*}; options: BASE PYTHON DEVICE WORKERS EPOCHS SEED OMP_NUM_THREADS" >&2; exit 2 ;;
        *) names+=("$word") ;;
    esac
done
PYTHON=${PYTHON:-python}
EPOCHS=${EPOCHS:-12}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# otherwise glibc returns and re-allocates large blocks in every step, which takes as long as the step itself
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456

run() {  # NAME MODEL SIDE [stn_argument=value...]
    local name=$1 model=$2 side=$3 resume=() trained
    shift 3
    if [[ -f $OUTPUT/$name/result.json || -f $OUTPUT/$name/last.pth.tar ]]; then
        trained=$(sed -n 's/^model: //p' "$OUTPUT/$name/args.yaml" 2>/dev/null || true)
        if [[ $trained && $trained != "$model" ]]; then
            echo "$OUTPUT/$name is a run of $trained, not of $model (BASE); another OUTPUT keeps both" >&2
            exit 2
        fi
    fi
    if [[ -f $OUTPUT/$name/result.json ]]; then
        echo "$name is finished"
        return
    fi
    if [[ -f $OUTPUT/$name/last.pth.tar ]]; then
        resume=(--resume "$OUTPUT/$name/last.pth.tar")
    else
        rm -f "$OUTPUT/$name/summary.csv"
    fi
    "$PYTHON" -m timm_stn.run train.py --data-dir "$DATA" --train-split train --val-split test --num-classes 200 \
        --model "$model" --img-size "$side" ${*:+--model-kwargs "$@"} --pretrained --pretrained-path "$WEIGHTS" \
        --batch-size 32 --opt adamw --lr 1e-3 --weight-decay 0.05 --layer-decay 0.85 --epochs "$EPOCHS" \
        --sched cosine --sched-on-updates --warmup-epochs 1 --warmup-lr 1e-5 --min-lr 1e-6 \
        --scale 0.35 1.0 --smoothing 0.1 --crop-pct 0.875 --channels-last --device "${DEVICE:-cpu}" \
        -j "${WORKERS:-1}" --seed "${SEED:-0}" --val-interval 3 --checkpoint-hist 1 \
        --output "$OUTPUT" --experiment "$name" "${resume[@]}"
    "$PYTHON" "$(dirname "${BASH_SOURCE[0]}")/birds_result.py" "$OUTPUT/$name"
}

plain=${BASE:-tf_efficientnet_lite0}
glimpses="stn_size=112 stn_transform=translation stn_scale=0.5 stn_join=mean stn_lr_scale=10.0 stn_localization=saliency:3"
one="stn_transform=translation stn_lr_scale=10.0 stn_localization=saliency:3"
large="stn_size=224 stn_transform=attention stn_scale=0.5 stn_localization=saliency:3 stn_whole=True"
((${#names[@]})) || names=(plain112 zoom112 plain176 plain224 whole2 whole4 glimpses2 glimpses4 one176 zoom192 plain448
    whole2at448)
for name in "${names[@]}"; do
    # shellcheck disable=SC2086  # several arguments each
    case $name in
        plain112) run "$name" $plain 112 ;;
        zoom112) run "$name" stn_$plain 224 stn_size=112 stn_transform=zoom ;;
        plain176) run "$name" $plain 176 ;;
        plain224) run "$name" $plain 224 ;;
        whole2) run "$name" stn_$plain 224 $glimpses stn_glimpses=2 stn_whole=True ;;
        whole4) run "$name" stn_$plain 224 $glimpses stn_glimpses=4 stn_whole=True ;;
        glimpses2) run "$name" stn_$plain 224 $glimpses stn_glimpses=2 ;;
        glimpses4) run "$name" stn_$plain 224 $glimpses stn_glimpses=4 ;;
        one176) run "$name" stn_$plain 224 $one stn_size=176 stn_scale=0.85 stn_localization_size=96 ;;
        zoom192) run "$name" stn_$plain 224 $one stn_size=192 stn_scale=[0.5,1.0] stn_localization_size=112 ;;
        plain448) run "$name" $plain 448 ;;
        whole2at448) run "$name" stn_$plain 448 $large stn_glimpses=2 ;;
        *) echo "unknown run $name; the runs are named at the head of ${BASH_SOURCE[0]}" >&2; exit 2 ;;
    esac
done
