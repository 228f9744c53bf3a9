//! A cache that is cut, damaged, shared, full or unwritable holds right bytes or none.

use proptest::prelude::*;

use super::*;

const N_BLOCKS: u64 = 9;
const N_BYTES: u64 = N_BLOCKS * BLOCK - 1000;

fn sealed(i: u8) -> Sealed {
    Sealed::new(format!("corpus/shards/{i}.parquet"), Digest::of(&[i]), N_BYTES)
}

/// What lies in the store: every block is another.
fn object(i: u8) -> Bytes {
    (0..N_BYTES).map(|at| (at / 251) as u8 ^ (at % 251) as u8 ^ i.wrapping_mul(37)).collect()
}

fn run(first: u64, n: u64) -> Range<u64> {
    first * BLOCK..((first + n) * BLOCK).min(N_BYTES)
}

fn put(cache: &DiskCache, i: u8, run: &Range<u64>) -> bool {
    let bytes = object(i).slice(run.start as usize..run.end as usize);
    let Some(room) = cache.room(bytes.len() as u64) else { return false };
    cache.put(&room, &sealed(i), run.start, &bytes);
    true
}

/// Whether it is there; what is there is right.
fn get(cache: &DiskCache, i: u8, run: &Range<u64>) -> bool {
    let [found] = &cache.get(&sealed(i), std::slice::from_ref(run))[..] else { panic!("one answer for one run") };
    let Some(found) = found else { return false };
    assert!(*found == object(i).slice(run.start as usize..run.end as usize), "object {i}, bytes {run:?}");
    true
}

fn open(folder: &Path, max_bytes: u64, kept: &[u8], mark_counts: Duration) -> DiskCache {
    let kept: Vec<Digest> = kept.iter().map(|&i| Digest::of(&[i])).collect();
    DiskCache::with_marks(folder, max_bytes, &kept, mark_counts)
}

fn disk_bytes(folder: &Path) -> u64 {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn what_was_put_is_found_by_the_next_process_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("made/for/it");
    let cache = open(&folder, 1 << 30, &[1], MARK_COUNTS);
    assert!(!get(&cache, 1, &run(0, 1)));
    assert!(put(&cache, 1, &run(0, 2)) && put(&cache, 1, &run(7, 2)));
    for cache in [cache, open(&folder, 1 << 30, &[1], MARK_COUNTS)] {
        assert!(get(&cache, 1, &run(0, 2)) && get(&cache, 1, &run(1, 1)) && get(&cache, 1, &run(8, 1)));
        assert!(!get(&cache, 1, &run(0, 3)) && !get(&cache, 1, &run(6, 2)) && !get(&cache, 2, &run(0, 2)));
    }
    let again = open(&folder, 1 << 30, &[1], MARK_COUNTS);
    assert!(put(&again, 1, &run(0, 3)));
    assert_eq!(again.stats().stored_bytes, BLOCK, "two of three blocks were there");
    again.forget(&sealed(1));
    assert!(!get(&again, 1, &run(0, 1)));
}

#[test]
fn an_objects_blocks_are_not_taken_for_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30, &[], MARK_COUNTS);
    assert!(put(&cache, 1, &run(0, N_BLOCKS)));
    for extension in ["data", "sums"] {
        std::fs::copy(cache.path(&Digest::of(&[1]).0, extension), cache.path(&Digest::of(&[2]).0, extension)).unwrap();
    }
    assert!(!get(&cache, 2, &run(0, 1)));
    let outside = Sealed::new("k".to_owned(), Digest("../../outside".to_owned()), N_BYTES);
    let room = cache.room(BLOCK).unwrap();
    cache.put(&room, &outside, 0, &object(1).slice(..BLOCK as usize));
    assert!(!dir.path().join("../../outside.data").exists());
}

#[test]
fn the_limit_holds_and_what_came_first_stays() {
    let dir = tempfile::tempdir().unwrap();
    let max_bytes = 1 << 20;
    let cache = open(dir.path(), max_bytes, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], Duration::ZERO);
    let all: Vec<(u8, Range<u64>)> = (0..10).flat_map(|i| (0..N_BLOCKS).map(move |k| (i, run(k, 1)))).collect();
    let was_put: Vec<bool> = all.iter().map(|(i, run)| put(&cache, *i, run)).collect();
    assert!(disk_bytes(dir.path()) <= max_bytes);
    let n_put = was_put.iter().filter(|&&put| put).count();
    assert!(n_put > 40 && n_put < all.len(), "{n_put}");
    assert!(was_put[..n_put].iter().all(|&put| put), "it stops admitting once");
    assert!(all[..n_put].iter().all(|(i, run)| get(&cache, *i, run)), "nothing of the run's own is removed");
}

#[test]
fn what_no_run_names_goes_first_and_the_oldest_before_the_newer() {
    let dir = tempfile::tempdir().unwrap();
    let max_bytes = 6 * N_BLOCKS * BLOCK;
    let whole = run(0, N_BLOCKS);
    let earlier = open(dir.path(), max_bytes, &[], MARK_COUNTS);
    for i in 0..5 {
        assert!(put(&earlier, i, &whole));
        let file = File::open(earlier.path(&Digest::of(&[i]).0, "sums")).unwrap();
        file.set_modified(SystemTime::now() - 3 * MARK_COUNTS + u32::from(i) * MARK_COUNTS / 10).unwrap();
        let file = File::options().write(true).open(earlier.path(&Digest::of(&[i]).0, "data")).unwrap();
        file.set_modified(SystemTime::now() - 3 * MARK_COUNTS).unwrap();
    }
    // Another run reads 1; this one reads 0 and what is new.
    let _other = open(dir.path(), max_bytes, &[1], MARK_COUNTS);
    let cache = open(dir.path(), max_bytes, &[0, 10, 11, 12], MARK_COUNTS);
    assert!(put(&cache, 10, &whole));
    assert!(get(&cache, 0, &whole) && get(&cache, 1, &whole), "they are in use");
    assert!(!get(&cache, 2, &whole), "the oldest is gone");
    assert!(get(&cache, 3, &whole) && get(&cache, 4, &whole), "no more than needed is");
    assert!(put(&cache, 11, &whole) && put(&cache, 12, &whole));
    assert!(get(&cache, 0, &whole) && get(&cache, 1, &whole) && get(&cache, 10, &whole));
    assert!(disk_bytes(dir.path()) <= max_bytes);
    assert!(!put(&cache, 13, &whole), "the rest is in use");
}

#[test]
fn a_folder_that_cannot_be_written_is_said_and_gone_on_without() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let cache = open(&file, 1 << 30, &[], MARK_COUNTS);
    assert!(!put(&cache, 1, &run(0, 1)) && !get(&cache, 1, &run(0, 1)));
    assert!(cache.stats().fault.is_some_and(|fault| fault.contains("disk cache") && fault.contains("file")));
    // A folder that goes away while it is used.
    let folder = dir.path().join("folder");
    let cache = open(&folder, 1 << 30, &[], MARK_COUNTS);
    assert!(put(&cache, 1, &run(0, 1)));
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "no folder").unwrap();
    assert!(!get(&cache, 1, &run(0, 1)));
    assert!(put(&cache, 1, &run(0, 1)), "there was room, as far as anybody knew");
    assert!(!put(&cache, 1, &run(0, 1)) && cache.stats().fault.is_some());
}

#[test]
fn processes_that_share_a_folder_stay_below_the_limit_and_read_each_others_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let max_bytes = 2 << 20;
    let caches: Vec<DiskCache> = (0..4).map(|_| open(dir.path(), max_bytes, &[], MARK_COUNTS)).collect();
    std::thread::scope(|scope| {
        for (nth, cache) in caches.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..400u64 {
                    let i = (round * 7 % 23) as u8;
                    let run = run((round * 5 + nth as u64) % N_BLOCKS, 1 + round % 3);
                    let run = run.start..run.end.min(N_BYTES);
                    if !get(cache, i, &run) {
                        put(cache, i, &run);
                    }
                    if round % 50 == 49 && nth == 0 {
                        cache.forget(&sealed(i));
                    }
                }
            });
        }
    });
    assert!(disk_bytes(dir.path()) <= max_bytes);
    assert!(caches.iter().all(|cache| cache.stats().fault.is_none() && cache.stats().n_hits > 0));
}

/// What may happen to the folder.
#[derive(Debug, Clone)]
enum Event {
    Put {
        i: u8,
        first: u64,
        n: u64,
    },
    /// A file ends here: the rest of it was not written before the machine went down.
    Cut {
        i: u8,
        data: bool,
        to: u64,
    },
    /// A part of a file reads as zeros: it was never written, though what came after it was.
    Lose {
        i: u8,
        data: bool,
        at: u64,
        n: u64,
    },
    Flip {
        i: u8,
        data: bool,
        bit: u64,
    },
    Reopen,
}

fn event() -> impl Strategy<Value = Event> {
    let (i, bytes) = (0u8..2, 0..N_BYTES);
    prop_oneof![
        3 => (i.clone(), 0..N_BLOCKS, 1u64..4).prop_map(|(i, first, n)| Event::Put { i, first, n }),
        1 => (i.clone(), any::<bool>(), bytes.clone()).prop_map(|(i, data, to)| Event::Cut { i, data, to }),
        1 => (i.clone(), any::<bool>(), bytes.clone(), 1u64..40_000)
            .prop_map(|(i, data, at, n)| Event::Lose { i, data, at, n }),
        2 => (i, any::<bool>(), 0..8 * N_BYTES).prop_map(|(i, data, bit)| Event::Flip { i, data, bit }),
        1 => Just(Event::Reopen),
    ]
}

fn damage(cache: &DiskCache, i: u8, data: bool, how: impl Fn(&mut Vec<u8>)) {
    let path = cache.path(&Digest::of(&[i]).0, if data { "data" } else { "sums" });
    let Ok(mut bytes) = std::fs::read(&path) else { return };
    if !bytes.is_empty() {
        how(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_damage_makes_a_wrong_byte_and_all_of_it_heals(events in prop::collection::vec(event(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path(), 1 << 30, &[], MARK_COUNTS);
        for event in events {
            match event {
                Event::Put { i, first, n } => {
                    let run = run(first, n);
                    prop_assert!(put(&cache, i, &run));
                }
                // Sums are short: a place is taken within what is there.
                Event::Cut { i, data, to } => damage(&cache, i, data, |b| b.truncate(to as usize % b.len())),
                Event::Lose { i, data, at, n } => damage(&cache, i, data, |b| {
                    let at = at as usize % b.len();
                    let end = (at + n as usize).min(b.len());
                    b[at..end].fill(0);
                }),
                Event::Flip { i, data, bit } => damage(&cache, i, data, |b| {
                    let at = (bit / 8) as usize % b.len();
                    b[at] ^= 1 << (bit % 8);
                }),
                Event::Reopen => cache = open(dir.path(), 1 << 30, &[], MARK_COUNTS),
            }
            for (i, k) in (0..2).flat_map(|i| (0..N_BLOCKS).map(move |k| (i, k))) {
                get(&cache, i, &run(k, 1));
            }
        }
        for i in 0..2 {
            for k in 0..N_BLOCKS {
                if !get(&cache, i, &run(k, 1)) {
                    prop_assert!(put(&cache, i, &run(k, 1)));
                }
            }
            prop_assert!(get(&cache, i, &run(0, N_BLOCKS)));
        }
        prop_assert!(cache.stats().fault.is_none());
    }
}
