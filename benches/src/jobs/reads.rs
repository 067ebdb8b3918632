//! Random reads in process, and opening, at growing depth.

use crate::images::{DEEP_DISK, FULL_DISK, deep, deep_flat, full, full_flat};
use crate::job::{Job, Program, Same};

const DEPTHS: [u64; 4] = [1, 100, 500, DEEPEST];
const DEEPEST: u64 = 1000;

pub fn jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for depth in DEPTHS {
        let layers = |prefix: &'static str| (0..depth).map(move |layer| format!("{prefix}{layer}"));
        let words = format!("op=read block=4096 image=deep{} span={DEEP_DISK}", depth - 1);
        let name = format!("random reads of holes and data, depth {depth}");
        jobs.push(
            libraries(Job::new(name), &words, depth)
                .on("deep", deep, depth)
                .warmed(layers("deep"))
                .point("random 4 KiB reads of holes and data: time of one", depth),
        );
        let words = format!("op=read block=4096 image=full{} span={FULL_DISK}", depth - 1);
        let name = format!("random reads of data, depth {depth}");
        jobs.push(
            libraries(Job::new(name), &words, depth)
                .on("full", full, depth)
                .warmed(layers("full"))
                .point("random 4 KiB reads of data: time of one", depth),
        );
    }
    jobs.push(
        like_one_layer("holes and data", "deep", DEEP_DISK)
            .on("deep", deep, DEEPEST)
            .on("deep, flat", deep_flat, DEEPEST),
    );
    jobs.push(
        like_one_layer("data", "full", FULL_DISK)
            .on("full", full, DEEPEST)
            .on("full, flat", full_flat, DEEPEST),
    );
    for depth in DEPTHS {
        let active = format!("deep{}", depth - 1);
        let words = format!("op=open image={active}");
        jobs.push(
            Job::new(format!("open and read a block, depth {depth}"))
                .by("catena", Program::CatenaWork, &words)
                .by("imago", Program::PeerWork, &format!("imago {words}"))
                .goal(1.0)
                .by("qcow2-rs", Program::PeerWork, &format!("qcow2-rs {words}"))
                .on("deep", deep, depth)
                .same(Same::Digest)
                .point("open, and read a block", depth),
        );
    }
    // QEMU's stack does not take a thousand.
    for depth in [1, 100, 500, 800] {
        let active = format!("deep{}", depth - 1);
        let command = format!("qemu-io: open and read, depth {depth}");
        let words = format!("-r -f qcow2 -c read|0|4k {active}");
        let mut job = Job::new(command)
            .by("catena", Program::CatenaWork, &format!("op=open image={active}"))
            .by("qemu-io", Program::Tool("qemu-io"), &words)
            .on("deep", deep, depth)
            .whole_commands()
            .point("open, and read a block: the whole command", depth);
        if depth == 800 {
            job = job.goal(20.0);
        }
        jobs.push(job);
    }
    jobs
}

/// Reads of a deep chain beside those of one image with the same content, which asks as much of the kernel; and with fewer descriptors than
/// layers.
fn like_one_layer(what: &str, prefix: &'static str, span: u64) -> Job {
    let words = |image: &str, descriptors: u64| {
        format!("op=read block=4096 image={image} span={span} descriptors={descriptors}")
    };
    let (deep, flat) = (format!("{prefix}{}", DEEPEST - 1), format!("{prefix}-flat"));
    Job::new(format!("random reads of {what}: depth {DEEPEST} like one layer"))
        .by("catena", Program::CatenaWork, &words(&deep, 4096))
        .by(
            "catena, all in one layer",
            Program::CatenaWork,
            &words(&flat, 4096),
        )
        .goal(0.9)
        .by(
            "catena, 1,024 descriptors",
            Program::CatenaWork,
            &words(&deep, 1024),
        )
        .same(Same::Digest)
        .warmed((0..DEEPEST).map(|layer| format!("{prefix}{layer}")))
        .warmed([flat])
}

fn libraries(job: Job, words: &str, depth: u64) -> Job {
    let mut job = job.by("catena", Program::CatenaWork, words).by(
        "imago",
        Program::PeerWork,
        &format!("imago {words}"),
    );
    match depth {
        1 => job = job.goal(1.0),
        500 => job = job.goal(20.0),
        _ => {}
    }
    job.by("qcow2-rs", Program::PeerWork, &format!("qcow2-rs {words}"))
        .same(Same::Digest)
}
