#!/usr/bin/env bash
# Measures everything that docs/performance.md leaves open for want of a GPU, in at most nine minutes on one H100.
#
#     benchmarks/gpu.sh NANOGPT [RESULTS]
#
# NANOGPT: checkout of karpathy/nanoGPT. RESULTS: folder for the JSON files; benchmarks/results if it isn't given.
# Steps are timed in one round each; for the medians of several rounds, start the benchmarks by themselves.
set -uo pipefail
nanogpt=$(realpath "${1:?checkout of nanoGPT}")
results=$(realpath -m "${2:-benchmarks/results}")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

measure() { # SECONDS COMMAND …: a part that fails or takes too long doesn't keep the others from being measured
  local started=$SECONDS
  echo "== ${*:2}"
  timeout "$1" "${@:2}" || { echo "failed with $?: ${*:2}"; failed=1; }
  echo "== took $((SECONDS - started)) s"
}

python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "no CUDA GPU" >&2; exit 2; }
mkdir -p "$results"

# Correct first: the captured updates train as Trainer does, and no step waits for the device.
measure 90 python -m pytest -q tests/training/test_waits.py

for shape in 8x201 64x201 256x201 32x789; do
  measure 100 python -m benchmarks.train_step --device cuda --nanogpt "$nanogpt" --shapes "$shape" --steps 220 --rounds 1 \
    --output "$results/gpu_train_step_$shape.json"
done

# A whole run, from the start of the command to the report.
measure 30 python -m examples.digits --output_dir "$work/raw"
measure 30 python prepare_dataset.py --data_files "$work/raw/rows.jsonl" --vocab_file "$work/raw/vocab.json" \
  --codec "$work/raw/codec" --output_dir "$work/prepared" --split_by field
for options in "" "--rows_on_device true --max_unchecked_steps 10 --cuda_graph true"; do
  # shellcheck disable=SC2086
  measure 60 accelerate launch --config_file accelerate_config.yaml train.py --config recipes/digits/config.yaml \
    --dataset_dir "$work/prepared" --output_dir "$work/run" --overwrite $options
done

measure 90 python -m benchmarks.answer --device cuda --model "$work/run/best_model" --dataset_dir "$work/prepared" \
  --num_rows 360 --batch_size 360 --num_images 256 --rounds 3 --output "$results/gpu_answer.json"
exit $failed
