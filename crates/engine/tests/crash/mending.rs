//! A full repair is cut off at every point: nothing that can be read becomes worse, and repairing again finishes it.

use std::sync::Arc;

use catena_engine::StorageBytes;
use catena_engine::qcow2::check::check;
use catena_engine::qcow2::metadata::{Repair, repair};
use catena_format::qcow2::{Header, RefcountWidth};
use catena_storage::Storage;
use catena_testkit::Dice;
use catena_testkit::storage::{Content, Log, Shared};

use crate::cuts::effort;
use crate::history::{History, check_options, look};
use crate::layouts::{self, Layout};

/// Steps of the history of an image that is damaged then.
const STEPS: u64 = 25;
/// Cuts of a repair.
const CUTS: usize = 250;
/// Cuts in all, at least.
const ALL_CUTS: usize = 3000;

fn words(store: &dyn Storage, offset: u64, bytes: u64) -> Vec<u64> {
    let mut table = vec![0; bytes as usize];
    store.read_at(&mut table, offset).unwrap();
    { table.chunks_exact(8) }
        .map(|word| u64::from_be_bytes(word.try_into().unwrap()))
        .collect()
}

/// Damages refcounts and flags, which has one right answer: what the tables refer to.
fn damage(image: &Content, dice: &mut Dice) -> Content {
    let store = Shared::from(image.clone());
    let header = Header::read(&StorageBytes::new(&store).unwrap()).unwrap();
    let size = header.cluster_bits.size();
    let width = RefcountWidth::of(&header);
    let table = u64::from(header.refcount_table_clusters) * size;
    let blocks: Vec<u64> = { words(&store, header.refcount_table_offset, table).into_iter() }
        .filter(|block| *block != 0)
        .collect();
    let used = image.len() / size + 4;
    for _ in 0..1 + dice.below(6) {
        let block = *dice.one_of(&blocks);
        let mut bytes = vec![0; size as usize];
        store.read_at(&mut bytes, block).unwrap();
        for _ in 0..1 + dice.below(8) {
            let index = dice.below(used.min(width.entries_per_block(header.cluster_bits)));
            let count = *dice.one_of(&[0, 0, 1, 2]);
            width.set(&mut bytes, index, count.min(width.max())).unwrap();
        }
        store.write_all_at(&bytes, block).unwrap();
    }
    // Flags that say that a cluster has one owner, or do not though it has.
    let l1 = words(&store, header.l1_offset, u64::from(header.l1_entries) * 8);
    for (index, entry) in (0..).zip(l1).filter(|(_, entry)| *entry != 0) {
        if dice.chance(30) {
            let flipped = entry ^ 1 << 63;
            let at = header.l1_offset + index * 8;
            store.write_all_at(&flipped.to_be_bytes(), at).unwrap();
        }
    }
    store.content()
}

fn mend(layout: Layout, seed: u64) -> usize {
    let mut history = History::begin(layout, seed);
    history.go(STEPS);
    let data: Vec<Content> = history.files().into_iter().skip(1).collect();
    let files = |image: Content| -> Vec<Content> { std::iter::once(image).chain(data.clone()).collect() };
    let damaged = damage(&history.image.content(), &mut Dice::new(seed));
    let before = look(&files(damaged.clone()), history.backing()).unwrap();
    assert!(before.disk == history.model.live, "{}", history.told());
    let told = |what: &str| format!("{what}, seed {seed}: {}", history.told());
    let log = Log::new();
    let image = Arc::new(log.recording(damaged));
    let mended = repair(&*image, Repair::All, &check_options()).unwrap();
    assert!(!mended.failed, "{}", told("not mended"));
    let mut cuts = 0;
    for cut in log.cuts(seed, CUTS) {
        let told = |what: &str| told(&format!("{what} after {:?}", cut.way));
        let image = cut.files[0].clone();
        let store = Shared::from(image.clone());
        for round in ["cut", "repaired again"] {
            let seen = look(&files(store.content()), history.backing());
            let seen = seen.unwrap_or_else(|why| panic!("{}: {why}", told(round)));
            assert!(seen.disk == before.disk, "{}: another disk", told(round));
            assert!(
                seen.snapshots == before.snapshots,
                "{}: other snapshots",
                told(round)
            );
            if round == "cut" {
                repair(&store, Repair::All, &check_options()).unwrap();
            }
        }
        let report = check(&store, &check_options()).unwrap();
        assert!(report.is_clean(), "{}: {:?}", told("again"), report.findings);
        cuts += 1;
    }
    cuts
}

#[test]
fn a_full_repair_survives_cuts_and_is_finished_by_another() {
    let layouts = [
        layouts::SMALLEST,
        layouts::SMALL,
        layouts::EXTENDED,
        layouts::DATA_FILES,
        layouts::USED,
    ]
    .concat();
    let (wanted, mut seed) = effort(ALL_CUTS);
    let mut cuts = 0;
    while cuts < wanted {
        cuts += layouts.iter().map(|layout| mend(*layout, seed)).sum::<usize>();
        seed += 1;
    }
    eprintln!("{cuts} cuts of repairs");
}
