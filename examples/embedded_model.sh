#!/usr/bin/env bash
# The embedded model from photographs, as `make embedded-model DATA=data` runs it: hours on a CPU.
# Every command goes on where it was stopped, so the whole may be stopped and started again.
# What DATA must hold is in docs/training.md.
set -euo pipefail

data=$1
fit_serve=${2:-fit-serve}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
features=(--feature-network "$data/efficientnet_lite0_fp16.safetensors")
classes=(--classes "$here/configs/embedded-classes.txt")

export_with() {
  "$fit_serve" export "$data/runs/embedded" "$data/bundle" --name fitv2-ti-caltech30 --replace \
    --autoencoder "$1" --num-inference-steps 20 --guidance-scale 4 --guided-channels 4
}

"$fit_serve" prepare "$data/caltech101_192_train.zip" "$data/latents/train" \
  "${classes[@]}" --autoencoder "$data/taesd" "${features[@]}"
"$fit_serve" prepare "$data/caltech101_192_val.zip" "$data/latents/val" --split val --no-augment \
  "${classes[@]}" --alignment-basis "$data/latents/train/pca.safetensors" \
  --autoencoder "$data/taesd" "${features[@]}"
"$fit_serve" train "$here/configs/embedded.yaml" data="$data/latents/train" \
  validation_data="$data/latents/val" output="$data/runs/embedded"

# The autoencoder: from random weights, then also on latents that the transformer makes.
"$fit_serve" train-autoencoder "$data/caltech101_192_train.zip" "$data/autoencoder" \
  --teacher "$data/taesd" "${features[@]}"
export_with "$data/autoencoder/export"
"$fit_serve" train-autoencoder "$data/caltech101_192_train.zip" "$data/autoencoder-further" \
  --start "$data/autoencoder/export" --model "$data/bundle" --generated 660 \
  --decoder-steps 2300 --encoder-steps 1200 --batch-pixels 32768 --learning-rate 4e-4 --dtype float32 \
  --teacher "$data/taesd" "${features[@]}"
export_with "$data/autoencoder-further/export"

"$fit_serve" evaluate --model "$data/bundle" -n 12 --seed 1000000 "${features[@]}" \
  --photographs "$data/caltech101_192_train.zip" --validation "$data/caltech101_192_val.zip" \
  --report "$data/report.json" --contact-sheet "$data/sheet.png"
