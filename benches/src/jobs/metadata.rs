//! What only metadata is read or written for.

use crate::images::{Folder, deep, qcow2, raw};
use crate::job::{Job, Program, Same};
use anyhow::Result;

pub fn jobs(data: u64) -> Vec<Job> {
    let mut jobs = vec![
        Job::img("create", "create -q -f qcow2 out 1T").same(Same::Image("out")),
        Job::img(
            "create, metadata preallocated",
            "create -q -f qcow2 -o preallocation=metadata out 64G",
        ),
        Job::img(
            "create over a chain, depth 500",
            "create -q -f qcow2 -b deep499 -F qcow2 out",
        )
        .goal(40.0)
        .on("deep", deep, 500),
        Job::img("measure", "measure -O qcow2 data.qcow2")
            .same(Same::Output)
            .on("raw", raw, data)
            .on("qcow2", qcow2, data),
    ];
    for (depth, goal) in [(1, 1.0), (100, 20.0), (1000, 100.0)] {
        let words = format!("map --output=json deep{}", depth - 1);
        jobs.push(
            Job::img(format!("map, depth {depth}"), &words)
                .goal(goal)
                .same(Same::Output)
                .on("deep", deep, depth)
                .warmed((0..depth).map(|layer| format!("deep{layer}")))
                .point("map", depth),
        );
    }
    for depth in [1, 100, 1000] {
        let words = format!("info --backing-chain deep{}", depth - 1);
        let mut job = Job::img(format!("info of a chain, depth {depth}"), &words);
        if depth == 1000 {
            job = job.goal(3.0);
        }
        jobs.push(
            job.by("catena show", Program::Catena, &format!("show deep{}", depth - 1))
                .on("deep", deep, depth)
                .point("info", depth),
        );
    }
    jobs.extend([
        Job::img("check, 256 GiB of 64 KiB clusters", "check large.qcow2")
            .goal(3.0)
            .on("256 GiB of 64 KiB clusters", large, 256),
        Job::img("check, 64 GiB of 4 KiB clusters", "check huge.qcow2")
            .goal(6.0)
            .on("64 GiB of 4 KiB clusters", huge, 64),
        Job::img("check -r leaks, 512 Ki leaks", "check -q -r leaks leaks.qcow2")
            .goal(20.0)
            .on("leaks", leaks, 0)
            .changes("leaks.qcow2"),
    ]);
    for (what, words, image) in [
        ("create", "snapshot -c one plain.qcow2", "plain.qcow2"),
        ("apply", "snapshot -a one tables.qcow2", "tables.qcow2"),
        ("delete", "snapshot -d one tables.qcow2", "tables.qcow2"),
    ] {
        jobs.push(
            Job::img(format!("snapshot {what}, 4 KiB clusters, full tables"), words)
                .goal(20.0)
                .on("a snapshot of full tables", snapshots, 0)
                .changes(image)
                .same(Same::Image(image)),
        );
    }
    jobs
}

fn large(folder: &Folder, gib: u64) -> Result<()> {
    folder.img(&format!(
        "create -q -f qcow2 -o preallocation=metadata large.qcow2 {gib}G"
    ))
}

fn huge(folder: &Folder, gib: u64) -> Result<()> {
    folder.img(&format!(
        "create -q -f qcow2 -o preallocation=metadata,cluster_size=4k huge.qcow2 {gib}G"
    ))
}

/// An image of 4 KiB clusters, all tables full, and one with a snapshot. The first that is taken is the dear one: all flags go.
fn snapshots(folder: &Folder, _: u64) -> Result<()> {
    folder.img("create -q -f qcow2 -o preallocation=metadata,cluster_size=4k =plain.qcow2 16G")?;
    folder.copy("=plain.qcow2", "=tables.qcow2")?;
    folder.img("snapshot -c one =tables.qcow2")
}

/// 512 Ki clusters of 4 KiB that nothing refers to: the L1 table of a full image is emptied.
fn leaks(folder: &Folder, _: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    folder.img("create -q -f qcow2 -o preallocation=metadata,cluster_size=4k =leaks.qcow2 2G")?;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.path().join("=leaks.qcow2"))?;
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0)?;
    let field = |at: usize, len: usize| {
        header[at..at + len]
            .iter()
            .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let (entries, offset) = (field(36, 4), field(40, 8));
    file.write_all_at(&vec![0; usize::try_from(entries)? * 8], offset)?;
    Ok(())
}
