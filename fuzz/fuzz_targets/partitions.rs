//! Partition tables, and what disks and file systems are called.
#![no_main]

use catena_format::{identifiers, partitions};
use catena_fuzz::look::Image;
use catena_fuzz::{number, plant};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: plant(disks().into_iter().map(|(name, bytes)| (name.to_owned(), [vec![0; 6], bytes].concat()))),
    |input: &[u8]| {
        let mut bytes = input;
        let len = number(&mut bytes, 6);
        for disk in [Image::new(bytes), Image::with_len(bytes, len)] {
            let len = catena_format::Bytes::len(&disk);
            if let Some(table) = partitions::read(&disk).expect("only reading can fail") {
                assert!(table.partitions.len() <= 1024);
                for partition in &table.partitions {
                    assert!(partition.number > 0 && partition.len > 0);
                    assert!(partition.start.checked_add(partition.len).is_some_and(|end| end <= len));
                }
            }
            let mut last = 0;
            for identifier in identifiers::read(&disk).expect("only reading can fail") {
                assert!(identifier.at >= last && !identifier.bytes.is_empty());
                assert!(identifier.at + identifier.bytes.len() as u64 <= len);
                last = identifier.at;
            }
        }
    }
);

/// An MBR with a logical partition, a GPT, and file systems.
fn disks() -> Vec<(&'static str, Vec<u8>)> {
    let sector = |start: u32, kind: u8, next: u32| {
        let mut sector = vec![0; 512];
        for (slot, kind, start) in [(446, kind, start), (462, if next > 0 { 5 } else { 0 }, next)] {
            sector[slot + 4] = kind;
            sector[slot + 8..slot + 12].copy_from_slice(&start.to_le_bytes());
            sector[slot + 12..slot + 16].copy_from_slice(&4u32.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    };
    let mut mbr = sector(2, 0x83, 6);
    mbr[440..444].fill(1);
    mbr.resize(12 * 512, 0);
    mbr[6 * 512..7 * 512].copy_from_slice(&sector(1, 0x83, 2));
    mbr[1024 + 1080..1024 + 1082].copy_from_slice(&[0x53, 0xef]);
    mbr[1024 + 1128..1024 + 1144].fill(2);

    let mut gpt = sector(1, 0xee, 0);
    gpt.resize(8 * 512, 0);
    gpt[512..520].copy_from_slice(b"EFI PART");
    gpt[512 + 56..512 + 72].fill(3);
    gpt[512 + 72] = 2;
    gpt[512 + 80] = 2;
    gpt[512 + 84] = 128;
    gpt[1024..1056].fill(4);
    gpt[1056] = 4;
    gpt[1064] = 6;
    gpt[4 * 512..4 * 512 + 4].copy_from_slice(b"XFSB");
    gpt[4 * 512 + 32] = 1;
    vec![("mbr", mbr), ("gpt", gpt)]
}
