#!/usr/bin/env bash
# Figures 3 and 4 of the paper, out of the simulator: how many opened files a cache of 5, 25, 50 and 75 % of all files has, read in
# the order of their listing and shuffled anew each epoch.
#
# usage: benches/figures/run.sh [FOLDER]      default: target/figures
#
# Figure 3 compares what leaves a full cache, with nothing fetched ahead; figure 4 what is fetched ahead, with first in, first out.
# Each is made for both orders: FOLDER/figure{3,4}-{sequential,shuffled}.{txt,json,svg}. The tables go to stdout, too. All is computed,
# the same on every machine; TORCHFS=... takes another binary than target/release/torchfs, which is built if it is not there.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n 's/^# \{0,1\}//p' "$0" | tail -n +2; exit ;; esac
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/target/figures}
torchfs=${TORCHFS:-$root/target/release/torchfs}
[ -x "$torchfs" ] || (cd "$root" && cargo build --release --quiet -p torchfs-cli)
mkdir -p "$folder"

# A fetch takes as long as four files are worked on, and eight are fetched at the same time.
figure() {
    local name=$1 title=$2
    shift 2
    for order in sequential shuffled; do
        local made=("$torchfs" sim --order "$order" --cache 5%,25%,50%,75% --epochs 5 --fetch-opens 4 --fetches 8 "$@")
        "${made[@]}" --plot "$folder/$name-$order.svg" >"$folder/$name-$order.txt"
        "${made[@]}" --json >"$folder/$name-$order.json"
        printf '%s, %s: ' "$title" "$order"
        cat "$folder/$name-$order.txt"
        echo
    done
}
figure figure3 "Figure 3, what leaves" --policy fifo,filo,lru,lfu,schedule --prefetch none
figure figure4 "Figure 4, what is fetched ahead" --policy fifo --prefetch none,sequential,history,auto,schedule
echo "in $folder"
