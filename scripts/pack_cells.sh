#!/bin/sh
# What a comparison needs of its finished cells to go on or to be reported elsewhere, one archive a seed, without weights
# and predictions. Unpack it in the comparison's folder: tar -xJf FILE -C runs/NAME
#
#   sh scripts/pack_cells.sh runs/NAME docs/evidence/cells
set -eu
from=$1 to=$2
mkdir -p "$to"
name=$(basename "$from")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for seed in $(ls "$from/cells" | sed 's/.*-seed//' | sort -nu); do
    : >"$work/list"
    for cell in "$from"/cells/*-seed"$seed"; do
        # A cell is finished when it is scored.
        [ -f "$cell/scores.json" ] || continue
        own=cells/$(basename "$cell")
        mkdir -p "$work/$own"
        cp -r "$cell/config.yaml" "$cell/manifest.json" "$cell/records.summary.json" "$cell/scores.json" "$cell/rows" "$work/$own"
        # Where the folders lay on this machine is nobody's business, and the comparison does not ask.
        sed -i -e "s#$(pwd)/##g" -e 's#"/[^"]*/src/radistill/#"src/radistill/#g' "$work/$own/config.yaml" "$work/$own/manifest.json"
        echo "$own" >>"$work/list"
    done
    [ -s "$work/list" ] || continue
    # Same cells, same bytes: no times, no owners. The largest window finds what the cells have in common.
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work" -cf "$work/cells.tar" -T "$work/list"
    xz -9e -T1 -c "$work/cells.tar" >"$work/cells.tar.xz"
    mv "$work/cells.tar.xz" "$to/$name-seed$seed.tar.xz"
done
