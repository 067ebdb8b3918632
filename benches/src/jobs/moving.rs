//! What moves bytes, or finds that it need not.

use crate::images::{Folder, deep, files, qcow2, raw};
use crate::job::{Job, Place, Program, Same};
use anyhow::Result;

pub fn jobs(data: u64) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (depth, goal) in [(100, 10.0), (500, 20.0)] {
        let words = format!("convert -f qcow2 -O raw deep{} out", depth - 1);
        jobs.push(
            Job::img(format!("convert a chain to raw, depth {depth}"), &words)
                .goal(goal)
                .same(Same::Bytes("out"))
                .on("deep", deep, depth)
                .point("convert to raw", depth),
        );
    }
    for (place, where_) in [
        (Place::Disk, "disk"),
        (Place::Memory, "memory"),
        (Place::Reflink, "reflink"),
    ] {
        let flat = |what: &str, words: &str, goal: f64| {
            Job::img(format!("convert {what}, {where_}"), words)
                .goal(goal)
                .place(place)
                .same(Same::Image("out"))
                .on("raw", raw, data)
                .on("qcow2", qcow2, data)
        };
        let goal = if place == Place::Reflink { 10.0 } else { 1.0 };
        jobs.push(flat("raw to qcow2", "convert -f raw -O qcow2 data.raw out", goal));
        jobs.push(
            flat("qcow2 to raw", "convert -f qcow2 -O raw data.qcow2 out", goal)
                .by(
                    "qemu-img -C",
                    Program::Tool("qemu-img"),
                    "convert -C -f qcow2 -O raw data.qcow2 out",
                )
                .goal(if place == Place::Reflink { 1.5 } else { 1.0 }),
        );
        jobs.push(flat(
            "qcow2 to qcow2",
            "convert -f qcow2 -O qcow2 data.qcow2 out",
            goal,
        ));
        jobs.push(
            flat("raw to raw", "convert -f raw -O raw data.raw out", goal)
                .by("cp", Program::Tool("cp"), "--sparse=always data.raw out")
                .goal(0.9),
        );
    }
    let on = |job: Job| {
        job.on("raw", raw, data)
            .on("qcow2", qcow2, data)
            .on("more", more, data)
    };
    let packed = |job: Job| job.on("files", files, data).on("packed", packed, data);
    for (shared, goal) in [(3 * data, 12.0), (16 * data, 30.0)] {
        let words = format!("compare {}.qcow2 other{}.qcow2", shared >> 20, shared >> 20);
        jobs.push(
            Job::img(
                format!("compare overlays that share {} MiB", shared >> 20),
                &words,
            )
            .goal(goal)
            .same(Same::Output)
            .on("overlays of one base", overlays, shared),
        );
    }
    jobs.extend([
        on(Job::img(
            "convert 4 KiB clusters to raw",
            "convert -f qcow2 -O raw small.qcow2 out",
        ))
        .goal(1.0)
        .same(Same::Bytes("out")),
        packed(Job::img(
            "convert compressed to raw",
            "convert -f qcow2 -O raw packed.qcow2 out",
        ))
        .goal(1.7)
        .same(Same::Bytes("out")),
        packed(Job::img(
            "convert compressed by zstd to raw",
            "convert -f qcow2 -O raw zstd.qcow2 out",
        ))
        .goal(1.2)
        .same(Same::Bytes("out")),
        packed(Job::img(
            "convert, compressing",
            "convert -c -W -m 16 -f raw -O qcow2 files.raw out",
        ))
        .goal(5.0)
        .same(Same::Image("out")),
        packed(Job::img(
            "convert, compressing by zstd",
            "convert -c -W -m 16 -f raw -O qcow2 -o compression_type=zstd files.raw out",
        ))
        .goal(1.5)
        .same(Same::Image("out")),
        packed(Job::img(
            "convert compressed to compressed",
            "convert -c -W -m 16 -f qcow2 -O qcow2 packed.qcow2 out",
        ))
        .goal(50.0)
        .same(Same::Image("out")),
        on(Job::img(
            "compare the same content",
            "compare data.raw data.qcow2",
        ))
        .goal(1.0)
        .same(Same::Output),
        on(Job::img(
            "compare copies",
            "compare -f raw -F raw data.raw copy.raw",
        ))
        .goal(1.0)
        .by("cmp", Program::Tool("cmp"), "data.raw copy.raw")
        .goal(1.0),
        on(Job::img("commit", "commit -q over.qcow2"))
            .goal(2.0)
            .changes("over.qcow2")
            .changes("base.qcow2")
            .same(Same::Image("base.qcow2")),
        Job::img("collapse 10 layers", "commit -q -b layer0.qcow2 layer10.qcow2")
            .goal(2.0)
            .on("raw", raw, data)
            .on("qcow2", qcow2, data)
            .on("layers", layers, data)
            .changes("layer0.qcow2")
            .changes("layer10.qcow2")
            .same(Same::Image("layer0.qcow2")),
        on(Job::img(
            "rebase onto a near base",
            "rebase -b newbase.qcow2 -F qcow2 top.qcow2",
        ))
        .goal(5.0)
        .changes("top.qcow2")
        .same(Same::Image("top.qcow2")),
        on(Job::img("rebase onto nothing", "rebase -b  top.qcow2"))
            .goal(1.0)
            .changes("top.qcow2")
            .same(Same::Image("top.qcow2")),
        Job::img(
            "convert fragmented qcow2 to raw, reflink",
            "convert -f qcow2 -O raw scattered.qcow2 out",
        )
        .goal(1.0)
        .by(
            "qemu-img -C",
            Program::Tool("qemu-img"),
            "convert -C -f qcow2 -O raw scattered.qcow2 out",
        )
        .place(Place::Reflink)
        .on("scattered", scattered, data)
        .same(Same::Bytes("out")),
    ]);
    jobs
}

/// Other clusters, and overlays of the same data.
fn more(folder: &Folder, data: u64) -> Result<()> {
    let (half, size) = (data / 2, data * 2);
    folder.img("convert -f raw -O qcow2 -o cluster_size=4k data.raw small.qcow2")?;
    folder.copy("data.raw", "copy.raw")?;
    folder.img("create -q -f qcow2 -b data.qcow2 -F qcow2 =top.qcow2")?;
    folder.io("=top.qcow2", &[write(7, half, half)])?;
    // Two bases that differ in little, so that a rebase has little to copy and much to compare.
    folder.img("create -q -f qcow2 -b data.qcow2 -F qcow2 newbase.qcow2")?;
    folder.io("newbase.qcow2", &[write(9, 0, 1 << 20)])?;
    folder.copy("data.qcow2", "=base.qcow2")?;
    folder.img(&format!(
        "create -q -u -f qcow2 -b base.qcow2 -F qcow2 =over.qcow2 {size}"
    ))?;
    folder.io("=over.qcow2", &[write(5, half, half)])
}

/// Files compressed, with either codec.
fn packed(folder: &Folder, _: u64) -> Result<()> {
    folder.img("convert -c -W -m 16 -f raw -O qcow2 files.raw packed.qcow2")?;
    folder.img("convert -c -W -m 16 -f raw -O qcow2 -o compression_type=zstd files.raw zstd.qcow2")
}

/// Two overlays of little over a base of so many bytes.
fn overlays(folder: &Folder, shared: u64) -> Result<()> {
    let name = shared >> 20;
    folder.img(&format!("create -q -f qcow2 {name}.base {shared}"))?;
    folder.io(&format!("{name}.base"), &fill(shared))?;
    for overlay in [format!("{name}.qcow2"), format!("other{name}.qcow2")] {
        folder.img(&format!("create -q -f qcow2 -b {name}.base -F qcow2 {overlay}"))?;
        folder.io(&overlay, &[write(7, 0, 1 << 20)])?;
    }
    Ok(())
}

/// Ten layers over a copy of the data, each with a tenth of it.
fn layers(folder: &Folder, data: u64) -> Result<()> {
    folder.copy("data.qcow2", "=layer0.qcow2")?;
    let part = (data / 10) >> 16 << 16;
    for layer in 1..=10 {
        let name = match layer {
            10 => "=layer10.qcow2".to_owned(),
            _ => format!("layer{layer}.qcow2"),
        };
        let below = layer - 1;
        folder.img(&format!(
            "create -q -u -f qcow2 -b layer{below}.qcow2 -F qcow2 {name} {}",
            data * 2
        ))?;
        let pattern = u8::try_from(layer)?;
        folder.io(&name, &[write(pattern, part * below, part)])?;
    }
    Ok(())
}

/// An image whose clusters lie in an order in which hardly one follows the one before.
fn scattered(folder: &Folder, data: u64) -> Result<()> {
    let clusters = data >> 16;
    folder.img(&format!("create -q -f qcow2 scattered.qcow2 {data}"))?;
    // Every 1,021st, round and round: a prime, so that all have their turn.
    let writes: Vec<_> = (0..clusters)
        .map(|n| write((n % 255 + 1) as u8, (n * 1021 % clusters) << 16, 64 << 10))
        .collect();
    for some in writes.chunks(1024) {
        folder.io("scattered.qcow2", some)?;
    }
    Ok(())
}

fn write(pattern: u8, from: u64, len: u64) -> String {
    format!("write -q -P {pattern} {from} {len}")
}

/// Writes all of a disk, in pieces that `qemu-io` takes.
fn fill(len: u64) -> Vec<String> {
    const MOST: u64 = 1 << 30;
    (0..len.div_ceil(MOST))
        .map(|n| write((n % 255 + 1) as u8, n * MOST, MOST.min(len - n * MOST)))
        .collect()
}
