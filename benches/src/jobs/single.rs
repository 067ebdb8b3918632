//! Reads and writes of one layer in process: sizes, kinds of writes, threads, requests under way at once, with and without page cache.
//!
//! Libraries whose requests return when they are answered (Catena) have a thread for each request that is under way; the others have
//! tasks. Buffered work happens in memory, where no disk makes noise; work around the page cache on the disk.

use crate::images::Folder;
use crate::job::{Job, Place, Program, Same};
use anyhow::Result;

/// Places that are written or read, each in a cluster of its own.
const PLACES: u64 = 4096;
const CLUSTER: u64 = 64 << 10;

/// Kinds of requests: what the table calls it, the image, whether it is written.
const KINDS: [(&str, &str, bool); 6] = [
    ("read", "one.qcow2", false),
    ("rewrite", "one.qcow2", true),
    ("allocating write", "none.qcow2", true),
    ("allocating write over a backing", "over.qcow2", true),
    ("allocating write, subclusters", "none-sub.qcow2", true),
    (
        "allocating write over a backing, subclusters",
        "over-sub.qcow2",
        true,
    ),
];

pub fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for (kind, image, written) in KINDS {
        for block in [4 << 10, 64 << 10] {
            for direct in [false, true] {
                for (threads, queue) in [(1, 1), (2, 1), (1, 32), (2, 32)] {
                    jobs.push(job(kind, image, written, block, direct, threads, queue));
                }
            }
        }
    }
    jobs
}

fn job(
    kind: &str,
    image: &'static str,
    written: bool,
    block: u64,
    direct: bool,
    threads: u64,
    queue: u64,
) -> Job {
    let through = if direct { "O_DIRECT" } else { "buffered" };
    let name = format!(
        "single layer: {kind}, {} KiB, {through}, {threads} threads, {queue} at once",
        block >> 10
    );
    let span = PLACES * CLUSTER;
    let op = if written { "write" } else { "read" };
    // Reads are of any block, writes of one block in each cluster.
    let stride = if written { CLUSTER } else { block };
    let words = format!(
        "op={op} image={image} block={block} stride={stride} span={span} threads={threads} queue={queue} direct={direct}"
    );
    let mut job = Job::new(name)
        .place(if direct { Place::Disk } else { Place::Memory })
        .on("single layers", layers, span)
        .by("catena", Program::CatenaWork, &words)
        .by("imago", Program::PeerWork, &format!("imago {words}"))
        .goal(1.0);
    // It knows no subclusters, and is of one thread.
    if threads == 1 && !kind.ends_with("subclusters") {
        job = job
            .by("qcow2-rs", Program::PeerWork, &format!("qcow2-rs {words}"))
            .goal(1.0);
    }
    if written {
        job.changes(image).same(Same::Image(image))
    } else {
        job.same(Same::Digest)
    }
}

/// Images of one layer: empty ones, one full of data, and empty ones over a full one.
fn layers(folder: &Folder, span: u64) -> Result<()> {
    folder.write_raw("one.raw", span)?;
    folder.img("convert -f raw -O qcow2 one.raw one.qcow2")?;
    folder.copy("one.qcow2", "=one.qcow2")?;
    std::fs::remove_file(folder.path().join("one.raw"))?;
    for (name, extended) in [("none", "off"), ("none-sub", "on")] {
        folder.img(&format!(
            "create -q -f qcow2 -o extended_l2={extended} ={name}.qcow2 {span}"
        ))?;
    }
    folder.copy("one.qcow2", "below.qcow2")?;
    for (name, extended) in [("over", "off"), ("over-sub", "on")] {
        folder.img(&format!(
            "create -q -f qcow2 -o extended_l2={extended} -b below.qcow2 -F qcow2 ={name}.qcow2"
        ))?;
    }
    Ok(())
}
