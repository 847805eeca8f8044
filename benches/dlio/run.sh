#!/usr/bin/env bash
# DLIO (PyPI dlio-benchmark, the benchmark of the paper) on a mount of three metadata and six storage nodes, beside the local disk
# and tmpfs in the same run. Installs what it needs; `run.sh --help` says what can be chosen. Needs root and /dev/fuse.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${DLIO_VENV:-$HOME/.cache/torchfs-dlio}

install() {
    export DEBIAN_FRONTEND=noninteractive
    # PyPI's torch for Linux brings 3 GB for GPUs, Debian's is built for the CPU.
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3-venv python3-torch python3-mpi4py openmpi-bin python3-h5py \
        python3-pandas python3-psutil python3-yaml python3-pil python3-numpy
    /usr/bin/python3 -m venv --system-site-packages "$venv"
    # Not its dependencies: it names tensorflow, DALI and torch for GPUs, which these shapes never use.
    "$venv/bin/pip" install -q --no-deps dlio-benchmark==2.0.0 pydftracer==1.0.2 hydra-core==1.3.2 omegaconf==2.3.0 \
        antlr4-python3-runtime==4.9.3 packaging
    local packages
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    # It imports tensorflow, whichever framework is used, and calls nothing of it.
    mkdir -p "$packages/tensorflow" && : >"$packages/tensorflow/__init__.py"
    # For every sample it formats a line for its log that names all samples: 13 ms each with 65,536 files.
    sed -i 's/^\( *\)logging.debug(f"{self.global_index_map}")/\1pass/' "$packages/dlio_benchmark/reader/reader_handler.py"
    touch "$venv/complete"
}

[ -e "$venv/complete" ] || { echo "installing DLIO in $venv" >&2 && install >"/tmp/dlio-install.$$" 2>&1; } ||
    { tail -5 "/tmp/dlio-install.$$" >&2; exit 1; }
rm -f "/tmp/dlio-install.$$"
DLIO_VENV=$venv exec "$venv/bin/python" "$here/dlio.py" "$@"
