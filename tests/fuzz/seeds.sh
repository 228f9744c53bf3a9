#!/usr/bin/env bash
# Fills corpus/TARGET with small real files: tests/fuzz/seeds.sh FOLDER, where FOLDER has audio/ image/ video/ bad/.
set -euo pipefail
data="$(realpath "${1:?give the folder with audio/ image/ video/ bad/}")"
cd "$(dirname "$0")"

# Larger files cost libFuzzer more time than they teach it.
limit="${2:-100k}"

# Copies one file under a name of its contents, so that a second run adds nothing; with bytes before it, in octal.
seed() {
  local target="$1" file="$2" before="${3:-}"
  local to="corpus/$target/$(sha1sum "$file" | cut -c1-16)${before:+-$before}"
  { [ -z "$before" ] || printf "\\$before"; cat "$file"; } > "$to"
}

count() {
  echo "corpus/$1: $(find "corpus/$1" -type f | wc -l) files"
}

# Copies the files of some folders.
gather() {
  local target="$1"
  shift
  mkdir -p "corpus/$target"
  find "$@" -type f -size "-$limit" ! -name '*.csv' ! -name '*.jsonl' ! -name '*.txt' ! -name '*.json' -print0 |
    while IFS= read -r -d '' file; do
      seed "$target" "$file"
    done
  count "$target"
}

gather image "$data/bad/image" "$data/image/coco-mini" "$data/ref/decode"
gather audio "$data/bad/audio" "$data/audio/codecs" "$data/audio/instruments"
gather video "$data/bad/video" "$data/video/misc" "$data/video/asl" "$data/video/grid-original"
for clip in "$data"/video/grid/bb*; do
  [ "$(stat -c %s "$clip")" -lt 200000 ] && seed video "$clip"
done

# Shards, tables and manifests of every past version, which lie in the repository.
gather shard "$data/bad/parquet" "$data/image/coco-mini" ../golden/shards
find corpus/shard -type f -print0 | while IFS= read -r -d '' file; do
  # Only what ends as a Parquet file does is worth a start.
  [ "$(tail -c 4 "$file")" = PAR1 ] || rm "$file"
done
for manifest in ../golden/shards/*/*/manifests/*.json; do
  seed shard "$manifest"
done
count shard

# A table stands in its folder's listing under each way in which its target reads one: see targets/table.rs.
mkdir -p corpus/table corpus/tar
find "$data/bad/text" "$data/bad/parquet" "$data/audio" "$data/image" "$data/video" ../golden/shards -type f -size "-$limit" \
  \( -name '*.csv' -o -name '*.tsv' -o -name '*.jsonl' -o -name '*.parquet' \) -print0 |
  while IFS= read -r -d '' file; do
    case "$file" in
      *.csv) ways="000 004 010 014 040" ;;
      *.tsv) ways="001 051" ;;
      *.jsonl) ways="002 012 022" ;;
      *.parquet) ways="003 007 023 027 033" ;;
    esac
    for way in $ways; do
      seed table "$file" "$way"
    done
  done
count table

# A tar as it is, compressed, and with its checksums mended: see targets/tar.rs.
find "$data/bad/tar" -type f -size "-$limit" -print0 |
  while IFS= read -r -d '' file; do
    for way in 000 001 010 022; do
      seed tar "$file" "$way"
    done
  done
# Parts of tars: type, bytes of the name, bytes of the body, name, body.
parts="$(mktemp)"
printf '\000\005\001\000a.jpgx\000\005\003\000a.txtone\000\005\002\000a.cls12\000\006\001\000b.jsonx' > "$parts"
seed tar "$parts" 014
seed tar "$parts" 055
printf '\006\001\007\000x../e.txo\010\001\015\000x13 path=c.jpg\000\001\001\000yz\020\005\001\000d.jpgq\160\005\003\000e.jpgabc' > "$parts"
seed tar "$parts" 014
seed tar "$parts" 016
rm "$parts"
count tar
