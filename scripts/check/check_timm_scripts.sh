#!/usr/bin/env bash
# Runs timm's own scripts, unchanged, with stn_ models on a tiny ImageFolder. Prints a line each: name, ok or FAILED, seconds.
#
#   TIMM_SCRIPTS=/path/to/pytorch-image-models scripts/check/check_timm_scripts.sh [--only REGEX] [--list] [--markdown FILE]
#
# A failed line runs again with the plain model instead of the stn_ one; its result is printed beside the first.
# Exits with 1 if a line failed. A line that is known to fail with the plain model too is "as plain" if it does.
# PYTHON (python), DEVICE (cpu) and OMP_NUM_THREADS (1) come from the environment.
set -uo pipefail

PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-cpu}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ONLY=. LIST='' MARKDOWN=''
while (($#)); do
    case $1 in
        --only) ONLY=${2:?takes a regular expression}; shift 2 ;;
        --list) LIST=1; shift ;;
        --markdown) MARKDOWN=${2:?takes a file}; shift 2 ;;
        -h|--help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "unknown argument $1; see --help" >&2; exit 2 ;;
    esac
done
if [[ ! -f ${TIMM_SCRIPTS:-}/train.py ]]; then
    echo "TIMM_SCRIPTS must name a checkout: $("$PYTHON" -c 'from timm_stn.run import clone_command; print(clone_command())')" >&2
    exit 2
fi

if [[ $MARKDOWN ]] && ! : >"$MARKDOWN.part"; then
    echo "argument --markdown: cannot write $MARKDOWN" >&2
    exit 2
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
WORK=$(mktemp -d "${TMPDIR:-/tmp}/check_timm_scripts.XXXXXX")
trap 'rm -rf "$WORK" ${MARKDOWN:+"$MARKDOWN.part"}' EXIT
COUNT=0 FAILED=0 PLAIN='' NAME='' ROWS=()
RUNNER=("$PYTHON" -m timm_stn.run)
COMMON=(--data-dir "$WORK/data" --device "$DEVICE" --img-size 64 --num-classes 3 -b 8 -j 1)
TRAIN=(--epochs 1 --warmup-epochs 0 --opt adamw --lr 1e-3 --checkpoint-hist 1 --log-interval 1 --output "$WORK/out")
RESNET=(--model stn_test_resnet)
VIT=(--model stn_test_vit --model-kwargs img_size=64)

# --- how a line is run ---

helper() { "$PYTHON" "$HERE/timm_scripts_helper.py" "$@"; }

has() { grep -q -- "'$2'" "$TIMM_SCRIPTS/$1"; }  # a script knows an option

imports() { "$PYTHON" -c "import $1" 2>/dev/null; }

compose() {  # CMD from a script and its arguments; with PLAIN, of the model without transformers
    local argument
    CMD=("${RUNNER[@]}")
    for argument; do
        if [[ $PLAIN ]]; then
            [[ $argument == stn_*=* ]] && continue
            argument=${argument#stn_}
        fi
        CMD+=("$argument")
    done
}

run() { compose "$@" && "${CMD[@]}"; }

train() { run train.py "${COMMON[@]}" "${TRAIN[@]}" --experiment "$NAME" "$@" && checked "$NAME"; }

resnet() { train "${RESNET[@]}" "$@"; }

checked() { [[ $PLAIN ]] || helper trained "$WORK/out/$1/last.pth.tar"; }

prepare() {  # the data and weights that lines share, when the first one wants them
    [[ -d $WORK/data ]] || helper prepare "$WORK" || { echo 'cannot prepare data and weights' >&2; exit 2; }
}

report() {  # NAME STATUS SECONDS WHAT
    printf '%-26s %s%s\n' "$1" "$2" "${3:+, $3 s}"
    ROWS+=("| $1 | ${4:+\`$4\`} | $2 | $3 |")
}

# NAME WHAT COMMAND...: run a line; WHAT says in short what is run. With AS_PLAIN=1 the plain model may fail, too
line() {
    local what=$2 status=ok plain=ok start took
    NAME=$1
    [[ $NAME =~ $ONLY ]] || return 0
    [[ $LIST ]] && { echo "$NAME"; return; }
    shift 2
    prepare
    COUNT=$((COUNT + 1)) start=$SECONDS
    "$@" >"$WORK/$NAME.log" 2>&1 || status=FAILED
    took=$((SECONDS - start))
    if [[ $status != ok ]]; then
        PLAIN=1 NAME=$NAME-plain "$@" >"$WORK/$NAME-plain.log" 2>&1 || plain=fails
        if [[ $plain == fails && ${AS_PLAIN:-} ]]; then
            status='as plain, which fails, too'
        else
            status="FAILED (plain: $plain)"
            FAILED=$((FAILED + 1))
        fi
    fi
    report "$NAME" "$status" "$took" "$what"
    [[ $status == ok ]] || why "$WORK/$NAME.log" >&2
}

why() {  # the last error in a log, or else its last lines
    { grep -E '(Error|Exception|Exit|error):' "$1" || grep -v '^ *$' "$1"; } | tail -n 2 | cut -c1-300 | sed 's/^/    /'
}

skip() {  # NAME WHY: what a line needs is not there
    [[ $1 =~ $ONLY ]] || return 0
    [[ $LIST ]] && { echo "$1"; return; }
    report "$1" "skipped: $2" '' ''
}

# --- lines that need more than arguments ---

own_way() {
    local RUNNER=("$PYTHON")
    run "$TIMM_SCRIPTS/train.py" "${COMMON[@]}" "${TRAIN[@]}" --experiment "$NAME" --device-modules timm_stn \
        "${RESNET[@]}" && checked "$NAME"
}

torchrun() {
    local RUNNER=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2 -m timm_stn.run)
    resnet "$@"
}

initial_checkpoint() {  # NEW ARGUMENTS...: with steps of no size, so that the weights are still there at the end
    local new=$1
    shift
    run train.py "${COMMON[@]}" "${TRAIN[@]}" --experiment "$NAME" "${RESNET[@]}" "$@" \
        --opt momentum --weight-decay 0 --lr 1e-30 || return
    [[ $PLAIN ]] || helper loaded "$WORK/plain.pth" "$WORK/out/$NAME/last.pth.tar" "$new"
}

resume() {
    local folder=$WORK/out/$NAME log=$WORK/$NAME.killed.log epochs=5 updates=3 pid i
    compose train.py "${COMMON[@]}" "${TRAIN[@]}" "${RESNET[@]}" --model-ema --epochs 1000 --experiment "$NAME"
    "${CMD[@]}" >"$log" 2>&1 &
    pid=$!
    for ((i = 0; i < 3000; i++)); do  # until it is in the middle of its third epoch
        grep -q 'Train: 2 \[ *1/' "$log" && break
        kill -0 $pid || { cat "$log"; return 1; }
        sleep 0.1
    done
    kill -9 $pid
    wait $pid
    [[ $? == 137 ]] || { echo 'was not killed'; return 1; }
    run train.py "${COMMON[@]}" "${TRAIN[@]}" "${RESNET[@]}" --model-ema --epochs $epochs --experiment "$NAME-again" \
        --resume "$folder/last.pth.tar" || return
    [[ $PLAIN ]] || { helper resumed "$folder/last.pth.tar" "$folder-again/last.pth.tar" $epochs $updates &&
        checked "$NAME-again"; }
}

trained() {  # TRAINED: a checkpoint with a moving average, made once
    TRAINED=$WORK/out/ema${PLAIN:+-plain}/last.pth.tar
    [[ -f $TRAINED ]] || NAME=ema${PLAIN:+-plain} resnet --model-ema --model-ema-decay 0.5
}

validate() { run validate.py "${COMMON[@]}" "$@"; }

validate_trained() { trained && validate "${RESNET[@]}" --checkpoint "$TRAINED" "$@"; }

validate_plain() {  # a plain checkpoint in an untouched network is the plain network
    validate "${RESNET[@]}" --checkpoint "$WORK/plain.pth" 2>&1 | tee "$WORK/$NAME.stn" || return
    [[ $PLAIN ]] && return
    PLAIN=1 validate "${RESNET[@]}" --checkpoint "$WORK/plain.pth" 2>&1 | tee "$WORK/$NAME.plain" || return
    helper same Loss: "$WORK/$NAME.stn" "$WORK/$NAME.plain"
}

cleaned() {
    trained && run clean_checkpoint.py --checkpoint "$TRAINED" --output "$WORK/clean.safetensors" --no-hash \
        --safetensors && validate "${RESNET[@]}" --checkpoint "$WORK/clean.safetensors"
}

averaged() {
    trained && run avg_checkpoints.py --input "${TRAINED%/*}" --filter 'checkpoint*.pth.tar' --no-use-ema \
        --output "$WORK/average.pth" && validate "${RESNET[@]}" --checkpoint "$WORK/average.pth"
}

inference() {
    trained && run inference.py "${COMMON[@]}" "${RESNET[@]}" --checkpoint "$TRAINED" --topk 2 --label-type none \
        --results-dir "$WORK/$NAME" --results-format csv && [[ $(wc -l <"$(ls "$WORK/$NAME"/*.csv)") == 13 ]]
}

benchmark() {
    run benchmark.py --device "$DEVICE" --img-size 64 -b 4 --num-warm-iter 1 --num-bench-iter 5 --no-retry \
        --results-file "$WORK/$NAME.csv" "$@" && [[ -s $WORK/$NAME.csv ]]
}

bulk() {  # starts a process of its own for each model
    run bulk_runner.py --model-list 'stn_test_resn*' --results-file "$WORK/$NAME.csv" -m 1 timm_stn.run benchmark.py \
        --device "$DEVICE" -b 2 --num-warm-iter 1 --num-bench-iter 5 --bench inference &&
        [[ $(wc -l <"$WORK/$NAME.csv") == 2 ]]
}

onnx() { run onnx_export.py "$WORK/$NAME.onnx" --img-size 64 --check-forward "$@" && [[ -s $WORK/$NAME.onnx ]]; }

# --- the matrix ---

line train 'train.py' resnet
if has train.py --device-modules; then
    line device-modules 'python train.py --device-modules timm_stn' own_way
else
    skip device-modules 'no such option'
fi
AS_PLAIN=1 line torchrun 'torchrun --nproc-per-node 2 -m timm_stn.run train.py' torchrun
line ema 'train.py --model-ema' resnet --model-ema --model-ema-decay 0.5
line amp 'train.py --amp --amp-dtype bfloat16' resnet --amp --amp-dtype bfloat16
line model-dtype 'train.py --model-dtype bfloat16' resnet --model-dtype bfloat16 --lr 1e-2
line channels-last 'train.py --channels-last --no-prefetcher' resnet --channels-last --no-prefetcher
line compile-eager 'train.py --torchcompile eager' resnet --torchcompile eager
line compile-aot 'train.py --torchcompile aot_eager' resnet --torchcompile aot_eager
if command -v "${CXX:-g++}" >/dev/null; then
    line compile-inductor "train.py --torchcompile --val-split ''" resnet --torchcompile inductor --val-split ''
else
    skip compile-inductor 'no C++ compiler'
fi
line torchscript 'train.py --torchscript' resnet --torchscript
line stages "train.py --model-kwargs stn_stages=('input',1,'layer3') stn_transform=similarity stn_lr_scale=0.5" \
    resnet --model-kwargs "stn_stages=('input',1,'layer3')" stn_transform=similarity stn_lr_scale=0.5
line glimpses 'train.py --model-kwargs stn_glimpses=2 stn_scale=0.5 stn_size=48 stn_transform=translation' \
    resnet --model-kwargs stn_glimpses=2 stn_scale=0.5 stn_size=48 stn_transform=translation
line towers 'train.py --model-kwargs stn_glimpses=2 stn_towers=separate stn_scale=0.5 stn_size=48' \
    resnet --model-kwargs stn_glimpses=2 stn_towers=separate stn_scale=0.5 stn_size=48
line shared 'train.py --model-kwargs stn_localization=shared:1 stn_iterations=2' \
    resnet --model-kwargs stn_localization=shared:1 stn_iterations=2
line layer-decay "train.py --layer-decay 0.75 (a ViT, stn_stages=('input',0))" \
    train "${VIT[@]}" "stn_stages=('input',0)" --layer-decay 0.75
line grad-checkpointing "train.py --grad-checkpointing --model-kwargs stn_stages=('input',1)" \
    resnet --grad-checkpointing --model-kwargs "stn_stages=('input',1)"
line grad-checkpointing-vit "train.py --grad-checkpointing --drop-path 0.1 (a ViT, stn_stages=('input',0))" \
    train "${VIT[@]}" "stn_stages=('input',0)" --grad-checkpointing --drop-path 0.1
line mixup 'train.py --mixup 0.8 --cutmix 1.0' resnet --mixup 0.8 --cutmix 1.0
line bce 'train.py --bce-loss --mixup 0.2' resnet --bce-loss --mixup 0.2
line split-bn 'train.py --aug-splits 3 --jsd-loss --split-bn --aa rand-m9' \
    resnet --aug-splits 3 --jsd-loss --split-bn --aa rand-m9
line accumulation 'train.py --grad-accum-steps 2 --clip-grad 1' resnet --grad-accum-steps 2 --clip-grad 1
line agc 'train.py --clip-grad 0.02 --clip-mode agc' resnet --clip-grad 0.02 --clip-mode agc
line head-init 'train.py --head-init-scale 0.1 --head-init-bias -1' resnet --head-init-scale 0.1 --head-init-bias -1
for opt in sgd muon lamb lion; do
    line "opt-$opt" "train.py --opt $opt" resnet --opt $opt
done
line in-chans 'train.py --input-size 1 64 64 --in-chans 1' \
    resnet --input-size 1 64 64 --in-chans 1 --mean 0.5 --std 0.5
if has train.py --train-img-sizes; then
    line image-sizes 'train.py --train-img-sizes 48 64' resnet --train-img-sizes 48 64
else
    skip image-sizes 'no such option'
fi
line initial-checkpoint 'train.py --initial-checkpoint PLAIN.pth' \
    initial_checkpoint '$^' --initial-checkpoint "$WORK/plain.pth"
line pretrained-path 'train.py --pretrained --pretrained-path PLAIN.pth (a new classifier)' \
    initial_checkpoint 'fc\.' --pretrained --pretrained-path "$WORK/plain.pth"
line resume 'train.py --model-ema; kill -9; train.py --resume last.pth.tar' resume
if has train.py --kd-model-name; then
    for kind in logit feature; do
        line "distill-$kind" "train.py --kd-model-name local-dir:TEACHER --kd-distill-type $kind" \
            resnet --kd-model-name "local-dir:$WORK/teacher" --kd-distill-type $kind
    done
    line distill-token 'train.py --kd-model-name local-dir:TEACHER --kd-distill-type token (a DeiT)' \
        train --model stn_deit_tiny_distilled_patch16_224 --model-kwargs img_size=64 depth=2 \
        --kd-model-name "local-dir:$WORK/teacher" --kd-distill-type token
    line distill-from-stn 'train.py --kd-model-name local-dir:STN_TEACHER' \
        resnet --kd-model-name "local-dir:$WORK/network"
else
    skip distill 'no --kd-model-name'
fi

line validate 'validate.py --checkpoint last.pth.tar' validate_trained
line validate-ema 'validate.py --checkpoint last.pth.tar --use-ema' validate_trained --use-ema
line validate-amp 'validate.py --amp --amp-dtype bfloat16 --channels-last' \
    validate_trained --amp --amp-dtype bfloat16 --channels-last
line validate-compile 'validate.py --torchcompile aot_eager' validate_trained --torchcompile aot_eager
line validate-torchscript 'validate.py --torchscript' validate_trained --torchscript
line validate-test-pool 'validate.py --test-pool --img-size 192' validate_trained --test-pool --img-size 192
line validate-plain 'validate.py --checkpoint PLAIN.pth (the same loss as the plain model)' validate_plain
line validate-local-dir 'validate.py --model local-dir:NETWORK' validate --model "local-dir:$WORK/network"
line clean-checkpoint 'clean_checkpoint.py; validate.py --checkpoint clean.safetensors' cleaned
line avg-checkpoints 'avg_checkpoints.py; validate.py --checkpoint average.pth' averaged
if imports pandas; then
    line inference 'inference.py --checkpoint last.pth.tar --topk 2' inference
else
    skip inference 'no pandas'
fi
line benchmark 'benchmark.py --bench both' benchmark "${RESNET[@]}" --bench both
line benchmark-bfloat16 'benchmark.py --bench both --precision bfloat16 --channels-last (glimpses)' \
    benchmark "${RESNET[@]}" --bench both --precision bfloat16 --channels-last --model-kwargs stn_glimpses=2 stn_scale=0.5
line bulk "bulk_runner.py --model-list 'stn_test_resn*' -m 1 timm_stn.run benchmark.py" bulk
if imports onnx && imports onnxruntime; then
    line onnx-export 'onnx_export.py --checkpoint WHOLE.pth --check-forward' \
        onnx "${RESNET[@]}" --num-classes 3 --checkpoint "$WORK/whole.pth"
    line onnx-export-local-dir 'onnx_export.py --model local-dir:NETWORK --check-forward' \
        onnx --model "local-dir:$WORK/network"
    if imports onnxscript; then
        line onnx-export-dynamo 'onnx_export.py --checkpoint WHOLE.pth --dynamo --check-forward' \
            onnx "${RESNET[@]}" --num-classes 3 --checkpoint "$WORK/whole.pth" --dynamo
    fi
else
    skip onnx-export 'no onnx or no onnxruntime'
fi
[[ $LIST ]] && exit

# --- result ---

echo "$COUNT lines, $FAILED failed, $SECONDS s"
if [[ $MARKDOWN ]]; then
    {
        echo "# timm's scripts with stn_ models"
        echo
        echo "By \`scripts/check/check_timm_scripts.sh --markdown FILE\`: $(helper versions "$TIMM_SCRIPTS"), device $DEVICE,"
        echo "OMP_NUM_THREADS=$OMP_NUM_THREADS. Models: \`stn_test_resnet\`, \`stn_test_vit\`, 64 x 64 images, 24 of them."
        echo
        echo '| line | what is run | result | seconds |'
        echo '| --- | --- | --- | --- |'
        printf '%s\n' "${ROWS[@]}"
        echo
        echo "$COUNT lines, $FAILED failed, $SECONDS s."
    } >"$MARKDOWN.part" && mv "$MARKDOWN.part" "$MARKDOWN"
fi
exit $((FAILED > 0))
