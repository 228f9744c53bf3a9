#!/usr/bin/env bash
# Fills corpus/TARGET with small real files: tests/fuzz/seeds.sh FOLDER, where FOLDER has audio/ image/ video/ bad/.
set -euo pipefail
data="$(realpath "${1:?give the folder with audio/ image/ video/ bad/}")"
cd "$(dirname "$0")"

# Larger files cost libFuzzer more time than they teach it.
limit="${2:-100k}"

# Copies the files of some folders under names of their contents, so that a second run adds nothing.
gather() {
  local target="$1"
  shift
  mkdir -p "corpus/$target"
  find "$@" -type f -size "-$limit" ! -name '*.csv' ! -name '*.jsonl' ! -name '*.txt' ! -name '*.json' -print0 |
    while IFS= read -r -d '' file; do
      cp -f "$file" "corpus/$target/$(sha1sum "$file" | cut -c1-16)"
    done
  echo "corpus/$target: $(find "corpus/$target" -type f | wc -l) files"
}

gather image "$data/bad/image" "$data/image/coco-mini" "$data/ref/decode"
gather audio "$data/bad/audio" "$data/audio/codecs" "$data/audio/instruments"
gather video "$data/bad/video" "$data/video/misc" "$data/video/asl" "$data/video/grid-original"
for clip in "$data"/video/grid/bb*; do
  [ "$(stat -c %s "$clip")" -lt 200000 ] && cp -f "$clip" "corpus/video/$(sha1sum "$clip" | cut -c1-16)"
done
gather shard "$data/bad/parquet" "$data/image/coco-mini"
find corpus/shard -type f -print0 | while IFS= read -r -d '' file; do
  # Only what ends as a Parquet file does is worth a start.
  [ "$(tail -c 4 "$file")" = PAR1 ] || rm "$file"
done
