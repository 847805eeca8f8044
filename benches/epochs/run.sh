#!/usr/bin/env bash
# Epochs of shuffled small files on mounts with the order announced: how many opens hit, what comes from storage and how long readers
# wait, for one reader, one that computes, workers of a data loader, and two mounts that share each epoch; beside `torchfs get -r` of the
# same files. `run.sh --help` says what can be chosen. Needs root and /dev/fuse; installs Debian's PyTorch if there is none.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-/usr/bin/python3}
if ! "$python" -c 'import torch' 2>/dev/null; then
    [ -z "${PYTHON:-}" ] || { echo "$python lacks torch" >&2; exit 2; }
    echo "installing: python3-torch" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3-torch >/dev/null
fi
exec "$python" "$here/epochs.py" "$@"
