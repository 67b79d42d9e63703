#!/usr/bin/env bash
# All that a GPU is wanted for, in the order of worth, within 12 minutes; results are JSON in OUT.
#
#   bash tests/gpu/run_all.sh OUT          on a machine with a GPU
#   bash tests/gpu/run_all.sh OUT --toy    small, on the CPU: does the script itself work?
#
#   OUT/tests.json      how tests/gpu ended (bits)
#   OUT/gpu.json        bandwidth at 1, 4 and 16 GiB beside zeros; docs/evidence/gpu.md is written anew
#   OUT/trained.json    the transformer of docs/evidence/identity.py at width 768, 12 layers
set -uo pipefail
out=$(mkdir -p "${1:?usage: run_all.sh OUT [--toy]}" && cd "$1" && pwd)
toy=${2:-}
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD:$PWD/adapters:$PWD/tests TF_CPP_MIN_LOG_LEVEL=3
python=${PYTHON:-python}
few=()
[ -n "$toy" ] && few=(-k "benchmark_measures or stand_in")

timeout 120 "$python" -m pytest tests/gpu -q -p no:cacheprovider "${few[@]}" | tee "$out/tests.log"
status=${PIPESTATUS[0]}
printf '{"exit status": %d, "said": "%s"}\n' "$status" "$(tail -n 1 "$out/tests.log" | tr -d '"')" \
    > "$out/tests.json"

if [ -n "$toy" ]; then
    timeout 60 "$python" - "$out/gpu.json" <<'PY'
import json, sys
from gpu import bandwidth
from gpu.places import Place

found = [(place := Place("torch", gpu=False), [bandwidth.measure(place, 2**20, rounds=2)])]
json.dump(bandwidth.gathered(found, {"cupy": "toy", "jax": "toy"}), open(sys.argv[1], "w"))
PY
else
    timeout 150 "$python" tests/gpu/bandwidth.py && cp docs/evidence/gpu.json "$out/gpu.json"
fi

timeout 440 "$python" tests/gpu/trained.py "$out/trained.json" --minutes 6.5 $toy
ls -l "$out"
[ "$status" -eq 0 ] && [ -s "$out/gpu.json" ] && [ -s "$out/trained.json" ]
