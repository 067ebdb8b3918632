//! The tables that a qcow2 header leads to: snapshots, bitmaps, L1 and L2 entries.
#![no_main]

use catena_format::limits;
use catena_format::qcow2::bitmap::Bitmap;
use catena_format::qcow2::{Cluster, Header, L1Entry, Layout, Snapshot};
use catena_fuzz::look::Image;
use catena_fuzz::{number, plant, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: plant(seeds::qcow2::with_tables()),
    |data: &[u8]| {
        for len in [0, 1 << 40] {
            let image = Image::with_len(data, len);
            let Ok(header) = Header::read(&image) else {
                return;
            };
            if let Ok(snapshots) = Snapshot::read_all(&header, &image) {
                assert_eq!(snapshots.len(), header.snapshot_count as usize);
                for snapshot in snapshots {
                    assert!(u64::from(snapshot.l1_entries) * 8 <= limits::QCOW2_L1_BYTES);
                }
            }
            if let Ok(bitmaps) = Bitmap::read_all(&header, &image) {
                assert!(bitmaps.len() <= limits::QCOW2_BITMAPS as usize);
                assert!(bitmaps.iter().all(|bitmap| bitmap.granularity.is_power_of_two()));
            }
            entries(Layout::of(&header), data);
        }
    }
);

/// Every pair of words is an entry and its bitmap.
fn entries(layout: Layout, mut data: &[u8]) {
    assert_eq!(
        layout.l2_entries() * layout.l2_entry_size(),
        layout.cluster_bits.size()
    );
    while !data.is_empty() {
        let (entry, bitmap) = (number(&mut data, 8), number(&mut data, 8));
        if let Ok(Some(table)) = layout.l2_offset(L1Entry(entry)) {
            assert!(layout.cluster_bits.offset_in_cluster(table) == 0 && table != 0);
        }
        let aligned = |host: u64| assert_eq!(layout.cluster_bits.offset_in_cluster(host), 0);
        match layout.cluster(entry, bitmap) {
            Ok(Cluster::Data { host } | Cluster::Zero { host: Some(host) }) => aligned(host),
            Ok(Cluster::Compressed { len, .. }) => {
                assert!(len > 0 && u64::from(len) <= 2 * layout.cluster_bits.size() + 512);
            }
            Ok(Cluster::Subclusters {
                host,
                allocated,
                zero,
            }) => {
                assert!(allocated & zero == 0 && (host.is_some() || allocated == 0));
                host.into_iter().for_each(aligned);
            }
            Ok(Cluster::Zero { host: None } | Cluster::Unallocated) | Err(_) => {}
        }
    }
}
