//! Compressed clusters.
#![no_main]

use catena_engine::decompress;
use catena_format::qcow2::Compression;
use catena_fuzz::{plant, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        let cluster: Vec<u8> = (0..4096u32).map(|n| (n / 7) as u8).collect();
        let stream = |compression, cluster: &[u8]| seeds::qcow2::compressed(compression, cluster);
        plant([
            ("deflate".to_owned(), [vec![0], stream(Compression::Deflate, &cluster)].concat()),
            ("zstd".to_owned(), [vec![1], stream(Compression::Zstd, &cluster)].concat()),
            ("deflate-bomb".to_owned(), [vec![2 * 9], stream(Compression::Deflate, &vec![0; 4 << 20])].concat()),
            ("zstd-bomb".to_owned(), [vec![1 + 2 * 9], stream(Compression::Zstd, &vec![0; 4 << 20])].concat()),
        ]);
    },
    |data: &[u8]| {
        let Some((how, stream)) = data.split_first() else {
            return;
        };
        let compression = if how & 1 == 0 { Compression::Deflate } else { Compression::Zstd };
        // 4 KiB first, which the seeds have.
        let size = 512usize << ((u32::from(how >> 1) + 3) % 13);
        // What is decompressed is all of the cluster, whatever was there.
        let (mut cluster, mut again) = (vec![0; size], vec![255; size]);
        if decompress::cluster(compression, stream, &mut cluster).is_ok() {
            decompress::cluster(compression, stream, &mut again).unwrap();
            assert_eq!(cluster, again);
        }
    }
);
