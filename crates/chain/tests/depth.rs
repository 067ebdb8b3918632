//! Ten thousand layers, and a thousand descriptors.
#![cfg(test)]

use catena::open::Sharing;
use catena::{Disk, End, GuestOffset, Policy, Start, detect};
use catena_format::qcow2::{Cluster, ClusterBits, CreateOptions, L1Entry, Layout, NewImage};
use catena_storage::{LocalFile, OpenOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const LAYERS: usize = 10_000;
const DESCRIPTORS: u64 = 1024;
const CLUSTER: u64 = 512;
const CLUSTERS: u64 = 1 << 14;

fn path(folder: &Path, layer: usize) -> PathBuf {
    folder.join(format!("{layer}.qcow2"))
}

/// The guest's cluster that a layer holds, and no other does; the base is layer 0.
fn cluster_of(layer: usize) -> u64 {
    (layer as u64 * 7919) % CLUSTERS
}

fn content_of(layer: usize) -> Vec<u8> {
    (layer as u64 + 1).to_le_bytes().repeat(CLUSTER as usize / 8)
}

fn make(folder: &Path, layer: usize) {
    let mut options = CreateOptions::new(CLUSTERS * CLUSTER).unwrap();
    options.cluster_bits = ClusterBits::new(9).unwrap();
    options.backing = layer
        .checked_sub(1)
        .map(|below| (format!("{below}.qcow2").into_bytes(), b"qcow2".to_vec()));
    let image = NewImage::lay_out(&options).unwrap();
    let layout = Layout::of(&image.header);
    let table = image.len.next_multiple_of(CLUSTER);
    let cluster = cluster_of(layer);
    let (index, in_table) = (cluster / layout.l2_entries(), cluster % layout.l2_entries());
    let host = table + CLUSTER;
    let (entry, _) = layout.encode(Cluster::Data { host }, true).unwrap();
    let file = File::create_new(path(folder, layer)).unwrap();
    for (offset, bytes) in &image.writes {
        file.write_all_at(bytes, *offset).unwrap();
    }
    let root = L1Entry::to_table(table, true).0.to_be_bytes();
    file.write_all_at(&root, image.header.l1_offset + index * 8)
        .unwrap();
    file.write_all_at(&entry.to_be_bytes(), table + in_table * 8)
        .unwrap();
    file.write_all_at(&content_of(layer), host).unwrap();
}

#[test]
fn ten_thousand_layers_are_read_with_a_thousand_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut holder = vec![None; CLUSTERS as usize];
    for layer in 0..LAYERS {
        make(folder.path(), layer);
        holder[cluster_of(layer) as usize] = Some(layer);
    }

    let chain = detect(
        &Start::at(path(folder.path(), LAYERS - 1), None),
        &Policy::libvirt(),
    );
    assert!(matches!(chain.end, End::Terminated), "{:?}", chain.end);
    assert_eq!(chain.layers.len(), LAYERS);
    let disk = chain.open(Sharing::Locked).unwrap();
    assert_eq!(disk.depth(), LAYERS);
    let mut found = vec![0; CLUSTER as usize];
    for (cluster, holder) in (0..).zip(&holder) {
        disk.read_at(&mut found, GuestOffset(cluster * CLUSTER)).unwrap();
        match holder {
            Some(layer) => assert_eq!(found, content_of(*layer), "cluster {cluster}"),
            None => assert!(found.iter().all(|byte| *byte == 0)),
        }
    }
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() < DESCRIPTORS as usize);

    // Nobody can write a layer, be its descriptor open or not.
    for layer in [0, 1, 5_000, LAYERS - 1] {
        let write = LocalFile::open(path(folder.path(), layer), &OpenOptions::new().write(true));
        assert!(write.is_err(), "layer {layer}");
    }

    // A layer far down is replaced, and asked for its bytes when its descriptor has long been closed.
    let replaced = 1_000;
    for layer in 4_000..5_000 {
        let offset = GuestOffset(cluster_of(layer) * CLUSTER);
        disk.read_at(&mut found, offset).unwrap();
    }
    let other = folder.path().join("other");
    std::fs::write(&other, [0xff; 4096]).unwrap();
    std::fs::rename(&other, path(folder.path(), replaced)).unwrap();
    let offset = GuestOffset(cluster_of(replaced) * CLUSTER);
    let error = disk.read_at(&mut found, offset).unwrap_err();
    assert!(
        error.full().contains("another file lies there now"),
        "{}",
        error.full()
    );
}
