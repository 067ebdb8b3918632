//! Bytes that go other ways than through memory: by the kernel, compressed already, or compressed on several threads.
#![cfg(test)]

use catena::ops::convert::{self, Publish, Shared, Target};
use catena::ops::create::{Kind, Preallocation, Qcow2Options};
use catena::ops::{Input, Moving, Offload, Silent};
use catena::{Policy, Start};
use catena_format::qcow2::Compression;
use catena_testkit::{Folder, qemu};
use std::path::Path;

/// Guest data of many kinds: text that repeats itself far back, noise, zeros, and holes.
fn write_raw(path: &Path) {
    let mut bytes = vec![0; 6 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (number, block) in bytes.chunks_mut(16 << 10).enumerate() {
        match number % 5 {
            // The second half repeats the first, 8 KiB before it: further than QEMU's own streams look back.
            0 | 1 => {
                for word in block.chunks_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&(state & 0x0f0f_0fff_0f0f_0f0f).to_le_bytes());
                }
                let (first, second) = block.split_at_mut(8 << 10);
                second.copy_from_slice(first);
            }
            2 => {
                for word in block.chunks_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes());
                }
            }
            3 => block.fill(b'c'),
            _ => {}
        }
    }
    bytes[2 << 20..3 << 20].fill(0);
    bytes.truncate((6 << 20) - 3 * 512);
    std::fs::write(path, bytes).unwrap();
}

fn converted(source: &Path, target: &Path, kind: Kind, compressed: bool, moving: Moving) {
    let request = convert::Request {
        sources: vec![Input::at(Start::at(source, None))],
        target: Target::New {
            path: target.to_owned(),
            kind,
            size: None,
            preallocation: Preallocation::Off,
            publish: Publish::InPlace,
        },
        shared: Shared::Compared,
        moving,
        compressed,
    };
    convert::plan(&request, &Policy::libvirt())
        .unwrap()
        .execute(&Silent)
        .unwrap();
}

fn qcow2(compression: Compression) -> Kind {
    Kind::Qcow2(Box::new(Qcow2Options {
        compression,
        ..Qcow2Options::default()
    }))
}

/// QEMU finds nothing wrong with the image, and what its guest sees is that file.
fn assert_is(image: &Path, format: &str, raw: &Path) {
    if format == "qcow2" {
        qemu::img(["check", "-q", "-f", "qcow2", &image.display().to_string()]).unwrap();
    }
    let (image, raw) = (image.display().to_string(), raw.display().to_string());
    qemu::img(["compare", "-q", "-f", format, "-F", "raw", &image, &raw]).unwrap();
}

#[test]
fn qemu_reads_what_was_compressed_and_any_number_of_threads_writes_the_same() {
    let folder = Folder::new();
    let raw = folder.path().join("source.raw");
    write_raw(&raw);
    for compression in [Compression::Deflate, Compression::Zstd] {
        let mut images = Vec::new();
        for threads in 1..=4 {
            let image = folder.path().join(format!("{threads}.qcow2"));
            let moving = Moving {
                threads,
                ..Moving::default()
            };
            converted(&raw, &image, qcow2(compression), true, moving);
            images.push(std::fs::read(&image).unwrap());
        }
        assert!(images.windows(2).all(|two| two[0] == two[1]));
        assert_is(&folder.path().join("1.qcow2"), "qcow2", &raw);
        // And no larger than by QEMU.
        let (name, theirs) = (raw.display().to_string(), folder.path().join("theirs.qcow2"));
        let options = match compression {
            Compression::Deflate => "compression_type=zlib",
            Compression::Zstd => "compression_type=zstd",
        };
        let their_name = theirs.display().to_string();
        qemu::img([
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            options,
            &name,
            &their_name,
        ])
        .unwrap();
        let theirs = std::fs::metadata(theirs).unwrap().len();
        assert!(
            images[0].len() as u64 <= theirs + theirs / 50,
            "{} {theirs}",
            images[0].len()
        );
    }
}

#[test]
fn compressed_clusters_are_passed_on_whoever_wrote_them() {
    let folder = Folder::new();
    let raw = folder.path().join("source.raw");
    write_raw(&raw);
    let name = |file: &str| folder.path().join(file).display().to_string();
    for (compression, option) in [
        (Compression::Deflate, "compression_type=zlib"),
        (Compression::Zstd, "compression_type=zstd"),
    ] {
        qemu::img([
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            option,
            &name("source.raw"),
            &name("qemu"),
        ])
        .unwrap();
        // Some clusters are not compressed any more, and an overlay holds others.
        folder.io("qcow2", "qemu", &["write -q -P 9 1M 100k"]);
        folder.img("create -q -f qcow2 -b qemu -F qcow2 over");
        folder.io("qcow2", "over", &["write -q -P 5 4M 70k"]);
        for source in ["qemu", "over"] {
            let (from, to) = (folder.path().join(source), folder.path().join("target"));
            converted(&from, &to, qcow2(compression), true, Moving::default());
            let plain = folder.path().join("plain.raw");
            qemu::img([
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                &name(source),
                &name("plain.raw"),
            ])
            .unwrap();
            assert_is(&to, "qcow2", &plain);
            let (ours, theirs) = (to.metadata().unwrap().len(), from.metadata().unwrap().len());
            assert!(source == "over" || ours <= theirs + (64 << 10), "{ours} {theirs}");
        }
    }
}

#[test]
fn what_the_kernel_moves_is_what_the_guest_sees() {
    let folder = Folder::new();
    let raw = folder.path().join("source.raw");
    write_raw(&raw);
    let source = folder.path().join("source.qcow2");
    converted(
        &raw,
        &source,
        qcow2(Compression::Deflate),
        false,
        Moving::default(),
    );
    for offload in [Offload::Never, Offload::Share, Offload::All] {
        for threads in [1, 3] {
            let moving = Moving {
                threads,
                offload,
                ..Moving::default()
            };
            for from in [&raw, &source] {
                let target = folder.path().join("target.qcow2");
                converted(from, &target, qcow2(Compression::Deflate), false, moving.clone());
                assert_is(&target, "qcow2", &raw);
                let target = folder.path().join("target.raw");
                converted(from, &target, Kind::Raw, false, moving.clone());
                assert!(std::fs::read(&target).unwrap() == std::fs::read(&raw).unwrap());
            }
        }
    }
}
