//! The hot paths, each of which is run so often that what is counted is it: `cargo xtask counts` counts their instructions.
//!
//! `catena-counts` names them, `catena-counts NAME` runs one. Images are in memory, so that no system call is on the way. What is counted
//! is what [`measured`] calls; the rest prepares.

use anyhow::{Context, Result, ensure};
use catena::ops::copy::is_zero;
use catena_engine::qcow2::{CheckOptions, check};
use catena_engine::{Disk, GuestOffset, Image, Qcow2, Qcow2Disk, Stack, WritableDisk};
use catena_format::qcow2::ClusterBits;
use catena_format::qcow2::create::{CreateOptions, NewImage};
use catena_storage::{MemoryStorage, Storage};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;

/// Prepares, and gives what is counted.
type Prepare = fn() -> Result<Box<dyn FnMut() -> Result<()>>>;

const PATHS: [(&str, Prepare); 5] = [
    ("lookup-in-merged-index", lookup),
    ("allocating-write", allocating_write),
    ("l2-parse", l2_parse),
    ("check-walk", check_walk),
    ("zero-detection", zero_detection),
];

fn main() -> Result<()> {
    let Some(name) = std::env::args().nth(1) else {
        for (name, _) in PATHS {
            println!("{name}");
        }
        return Ok(());
    };
    let (_, prepare) = PATHS
        .into_iter()
        .find(|(path, _)| *path == name)
        .with_context(|| format!("there is no path `{name}`"))?;
    let mut path = prepare()?;
    // Whatever is only done the first time does not count.
    path()?;
    measured(&mut *path)
}

/// What is called from here is counted: the name is known to `cargo xtask counts`.
#[inline(never)]
fn measured(path: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    black_box(path())
}

/// An empty image in memory.
fn image(size: u64, cluster_bits: u32) -> Result<Arc<dyn Storage>> {
    let mut options = CreateOptions::new(size)?;
    options.cluster_bits = ClusterBits::new(cluster_bits)?;
    let new = NewImage::lay_out(&options)?;
    let storage = MemoryStorage::with_len(new.len);
    for (offset, bytes) in &new.writes {
        storage.write_all_at(bytes, *offset)?;
    }
    Ok(Arc::new(storage))
}

/// An image in memory with data in each so manieth cluster.
fn written(size: u64, cluster_bits: u32, every: u64, first: u64) -> Result<Arc<dyn Storage>> {
    let storage = image(size, cluster_bits)?;
    let disk = Qcow2Disk::open(Arc::clone(&storage), None, None)?;
    let cluster = 1u64 << cluster_bits;
    for number in (first..size >> cluster_bits).step_by(usize::try_from(every)?) {
        disk.write_at(&[1; 512], GuestOffset(number * cluster))?;
    }
    disk.close()?;
    Ok(storage)
}

/// Small reads all over a stack whose map is merged already.
fn lookup() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let size = 64 << 20;
    let layers: Vec<(Arc<dyn Image>, PathBuf)> = (0..8)
        .map(|layer| {
            let image = Qcow2::open(written(size, 16, 8, layer)?, None)?;
            Ok((Arc::new(image) as Arc<dyn Image>, PathBuf::from("layer")))
        })
        .collect::<Result<_>>()?;
    let stack = Stack::new(layers);
    Ok(Box::new(move || {
        let mut buf = [0; 64];
        for number in 0..10_000u64 {
            let offset = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (size - 64);
            stack.read_at(black_box(&mut buf), GuestOffset(offset))?;
        }
        Ok(())
    }))
}

/// Small writes, each to a cluster that was not there.
fn allocating_write() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let disk = Qcow2Disk::open(image(1 << 30, 16)?, None, None)?;
    let mut next = 0u64;
    Ok(Box::new(move || {
        for _ in 0..2000 {
            // An odd number of clusters apart: all over the disk, and each once.
            let cluster = next.wrapping_mul(4099) % (1 << 14);
            disk.write_at(&[7; 4096], GuestOffset((cluster << 16) + 8192))?;
            next += 1;
        }
        Ok(())
    }))
}

/// What one image says of all its clusters.
fn l2_parse() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let size = 512 << 20;
    let image = Qcow2::open(written(size, 16, 3, 0)?, None)?;
    Ok(Box::new(move || {
        let mut extents = Vec::new();
        image.map(GuestOffset(0), GuestOffset(size), &mut extents)?;
        ensure!(extents.len() > 1000, "the image has more extents than that");
        Ok(())
    }))
}

/// A check of an image of small clusters.
fn check_walk() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let storage = written(64 << 20, 12, 1, 0)?;
    Ok(Box::new(move || {
        // What other threads do is not counted.
        let options = CheckOptions {
            threads: 1,
            ..CheckOptions::default()
        };
        let report = check(&*storage, &options)?;
        ensure!(report.is_clean(), "the image is clean");
        Ok(())
    }))
}

/// A look for anything that is not zero in zeros.
fn zero_detection() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let zeros = vec![0u8; 1 << 20];
    Ok(Box::new(move || {
        for _ in 0..16 {
            ensure!(is_zero(black_box(&zeros)), "zeros are zeros");
        }
        Ok(())
    }))
}
